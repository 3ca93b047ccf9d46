"""Whose turn it is to write: fair between processes, which SQLite's own waiting is not."""

from __future__ import annotations

import contextlib
import fcntl
import os

_FLAGS = os.O_RDONLY | os.O_CLOEXEC


class WriteLock:
    """
    Two file locks beside the database. Who just released the turn must pass the door again, behind those already waiting
    there, so nobody is overtaken twice. The kernel frees both when a process dies.

    They are files of their own because locks on the database file belong to SQLite, and closing any descriptor of that
    file would drop them.
    """

    def __init__(self) -> None:
        self._door = self._turn = -1

    def open(self, path: str) -> None:
        """Beside the database, which exists."""
        self._door = _open(f"{path}-mq-door", path)
        self._turn = _open(f"{path}-mq-turn", path)

    def __enter__(self) -> None:
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        """Also in a forked child, whose copy would keep the turn taken after the holder's death."""
        for descriptor in (self._door, self._turn):
            if descriptor >= 0:
                os.close(descriptor)
        self._door = self._turn = -1


def _open(name: str, database: str) -> int:
    """
    For reading, which is all that flock(2) needs: who may use the database may lock, whoever made the file.

    A new one gets owner and permissions of the database, as SQLite does it for its own files.
    """
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _FLAGS)
    try:
        made = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # somebody else was faster
        return os.open(name, _FLAGS)
    try:
        like = os.stat(database)
        os.fchmod(made, like.st_mode & 0o666)
        if os.geteuid() == 0:
            os.fchown(made, like.st_uid, like.st_gid)
    except OSError:
        os.close(made)
        raise
    return made
