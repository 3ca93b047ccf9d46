"""One commit thread per file for everybody in the process, and which files its buses know."""

from __future__ import annotations

import os
import threading
import weakref

from mqkit.backends.sqlite.committer import Committer
from mqkit.backends.sqlite.file import Identity, refuse_inherited
from mqkit.backends.sqlite.options import SqliteOptions
from mqkit.errors import ConfigError, NotFound

_committers: dict[str, Committer] = {}
_known: dict[str, tuple[Identity, weakref.WeakSet[object]]] = {}  # files by path, and whose they are
_lock = threading.Lock()


def acquire(path: str, options: SqliteOptions, user: object, *, create: bool = False) -> Committer:
    """
    The committer of a file, opened. Every `acquire` needs its `release`.

    Until `user` says `forget`, or is gone, nobody in this process takes another file for this one, or makes it anew:
    what was published into it would be missing without a word.

    Args:
        create: Make the file where it is missing; else that is `NotFound`.
    """
    refuse_inherited(path)
    _guard_forks()
    while True:
        committer = _shared(path, options, create=create)
        try:
            committer.wait_open()
            break
        except BaseException as exc:
            release(committer)
            if not isinstance(exc, NotFound) or committer.creates or not create:
                raise  # else it was opened by somebody who only wanted to look
    with _lock:
        known = _known.get(path)
        if known is None or not known[1]:
            known = _known[path] = (committer.file.identity, weakref.WeakSet())
        known[1].add(user)
    return committer


def forget(path: str, user: object) -> None:
    """`user` has closed everything: what is at this path next is not compared with what it used."""
    with _lock:
        known = _known.get(path)
        if known is not None:
            known[1].discard(user)
            if not known[1]:
                del _known[path]


def _shared(path: str, options: SqliteOptions, *, create: bool) -> Committer:
    with _lock:
        committer = _committers.get(path)
        if committer is None or not committer.usable:
            committer = _committers[path] = Committer(path, options, create=create, expected=_expected(path))
        else:
            _refuse_other_options(committer, options)
            committer.users += 1
        return committer


def _expected(path: str) -> Identity | None:
    identity, users = _known.get(path, (None, ()))
    return identity if users else None


def release(committer: Committer) -> None:
    with _lock:
        committer.users -= 1
        if committer.users:
            return
        if _committers.get(committer.path) is committer:
            del _committers[committer.path]
    committer.stop()


_guarded = False


def _guard_forks() -> None:
    global _guarded
    if not _guarded:
        _guarded = True
        os.register_at_fork(after_in_child=_abandon_all)


def _abandon_all() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for committer in _committers.values():
        committer.abandon()
    _committers.clear()
    _known.clear()


def _refuse_other_options(committer: Committer, options: SqliteOptions) -> None:
    for name in ("synchronous", "reserve", "busy"):
        ours, theirs = getattr(options, name), getattr(committer.options, name)
        if ours != theirs:
            raise ConfigError(
                f"SQLite file {committer.path} is open in this process with {name}={theirs}; "
                f"give every bus of the file the same, not {name}={ours}"
            )
