"""Whose turn it is to write: fair between processes, which SQLite's own waiting is not."""

from __future__ import annotations

import fcntl
import os


class WriteLock:
    """
    Two file locks beside the database. Who just released the turn must pass the door again, behind those already waiting
    there, so nobody is overtaken twice. The kernel frees both when a process dies.

    They are files of their own because locks on the database file belong to SQLite, and closing any descriptor of that
    file would drop them.
    """

    def __init__(self, path: str) -> None:
        self._door = os.open(f"{path}-mq-door", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._turn = os.open(f"{path}-mq-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            os.close(self._door)
            raise

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
