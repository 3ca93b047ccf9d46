"""sqlite3 exceptions and system errors as errors of mqkit."""

from __future__ import annotations

import errno
import sqlite3

from mqkit.errors import (
    ConfigError,
    Denied,
    MqkitError,
    PublishFailed,
    PublishUnknown,
    StoreDamaged,
    Unavailable,
    Unencodable,
)


class InTransaction(ConfigError):
    """The user's own transaction cannot carry a publish."""


# Primary result codes, see sqlite.org/rescode.html
ERRORS: dict[int, tuple[type[MqkitError], str]] = {
    sqlite3.SQLITE_PERM: (Denied, "may not be opened by this user; check its permissions"),
    sqlite3.SQLITE_ABORT: (Unavailable, "was interrupted; nothing was written"),
    sqlite3.SQLITE_BUSY: (Unavailable, "is locked by another program; nothing was written"),
    sqlite3.SQLITE_LOCKED: (Unavailable, "is locked by another connection; nothing was written"),
    sqlite3.SQLITE_NOMEM: (Unavailable, "cannot be served, memory is exhausted; nothing was written"),
    sqlite3.SQLITE_READONLY: (Denied, "is read-only; file and folder must be writable"),
    sqlite3.SQLITE_INTERRUPT: (Unavailable, "was interrupted; nothing was written"),
    sqlite3.SQLITE_IOERR: (Unavailable, "has an I/O error; check disk and system log"),
    sqlite3.SQLITE_CORRUPT: (StoreDamaged, "is corrupt; stop all programs using it and restore a backup"),
    sqlite3.SQLITE_FULL: (Unavailable, "cannot grow, the disk is full; nothing was written"),
    sqlite3.SQLITE_CANTOPEN: (Denied, "cannot be opened; check that file and folder may be read and written"),
    sqlite3.SQLITE_PROTOCOL: (Unavailable, "is locked by another program; nothing was written"),
    sqlite3.SQLITE_SCHEMA: (Unavailable, "had its tables changed meanwhile; nothing was written"),
    sqlite3.SQLITE_AUTH: (Denied, "may not be used by this connection"),
    sqlite3.SQLITE_NOTADB: (StoreDamaged, "is no SQLite database; check the path"),
}

LONE: dict[int, tuple[type[MqkitError], str]] = {
    sqlite3.SQLITE_BUSY_SNAPSHOT: (
        InTransaction,
        "changed since your transaction read from it; begin with BEGIN IMMEDIATE",
    ),
}


# Names of errno(3): what may pass by itself, and what is wrong with the path.
_PASSING = (
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ENOLCK),
    *(errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBUSY),
)
_MISNAMED = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)


def translate(exc: sqlite3.Error, path: str) -> MqkitError:
    """The typed error for what sqlite3 raised while working on `path`."""
    code: int = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    found = LONE.get(code) or ERRORS.get(code & 0xFF)
    if found is None and str(exc).startswith(("no such table: mq_", "no such column")):
        found = StoreDamaged, f"has not the tables that mqkit made ({exc}); restore a backup"
    if found is None:
        return not_stored(exc, path)
    kind, words = found
    return kind(f"SQLite file {path} {words}")


def translate_os(exc: OSError, path: str) -> MqkitError:
    """The typed error for a system call on `path` or beside it."""
    if isinstance(exc, FileNotFoundError):
        return ConfigError(f"SQLite file {path}: its folder does not exist; create it first")
    if exc.errno in _PASSING:
        return Unavailable(f"SQLite file {path} cannot be used now ({exc.strerror})")
    if exc.errno in _MISNAMED:
        return ConfigError(f"SQLite file {path} cannot be opened ({exc.strerror}); check the path")
    beside = f"{exc.filename} " if exc.filename and exc.filename != path else "it "
    return Denied(
        f"SQLite file {path}: {beside}may not be used by this user ({exc.strerror}); file, the -mq- files beside it and "
        "their folder must be readable and writable"
    )


def translate_any(exc: Exception, path: str) -> MqkitError:
    """The typed error for whatever broke a transaction or a look at the file."""
    if isinstance(exc, MqkitError):
        return exc
    if isinstance(exc, sqlite3.Error):
        return translate(exc, path)
    if isinstance(exc, OSError):
        return translate_os(exc, path)
    if isinstance(exc, MemoryError):
        return Unavailable(f"SQLite file {path} cannot be served, memory is exhausted; nothing was written")
    return not_stored(exc, path)


def not_stored(exc: Exception, path: str) -> Unencodable:
    """SQLite or its driver refused a value or a statement, which says nothing about the file."""
    return Unencodable(f"SQLite file {path} cannot store what it was given ({exc}); nothing was written")


def publish_error(error: MqkitError) -> MqkitError:
    """What a failed transaction means to each of its publishes: one that may be tried again is a failed publish."""
    return PublishFailed(str(error)) if isinstance(error, Unavailable) else error


def commit_unknown(exc: Exception, path: str) -> PublishUnknown:
    """A COMMIT that broke off: nobody knows what reached the disk."""
    return PublishUnknown(f"SQLite file {path} broke off while committing ({exc}); publish again with the same id")


def in_doubt(exc: Exception) -> bool:
    """Did a failing COMMIT leave its outcome open? A full or locked disk rolls back; an I/O error says nothing."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
