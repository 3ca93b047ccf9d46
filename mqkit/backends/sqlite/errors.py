"""sqlite3 exceptions and system errors as errors of mqkit."""

from __future__ import annotations

import sqlite3

from mqkit.errors import ConfigError, Denied, MqkitError, PublishFailed, PublishUnknown, StoreDamaged, Unavailable


class InTransaction(ConfigError):
    """The user's own transaction cannot carry a publish."""


# Primary result codes, see sqlite.org/rescode.html
ERRORS: dict[int, tuple[type[MqkitError], str]] = {
    sqlite3.SQLITE_PERM: (Denied, "may not be opened by this user; check its permissions"),
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
    sqlite3.SQLITE_AUTH: (Denied, "may not be used by this connection"),
    sqlite3.SQLITE_NOTADB: (StoreDamaged, "is no SQLite database; check the path"),
}

LONE: dict[int, tuple[type[MqkitError], str]] = {
    sqlite3.SQLITE_BUSY_SNAPSHOT: (
        InTransaction,
        "changed since your transaction read from it; begin with BEGIN IMMEDIATE",
    ),
}


def translate(exc: sqlite3.Error, path: str) -> MqkitError:
    """The typed error for what sqlite3 raised while working on `path`."""
    code: int = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    kind, words = LONE.get(code) or ERRORS.get(code & 0xFF) or (StoreDamaged, f"cannot be used ({exc})")
    return kind(f"SQLite file {path} {words}")


def translate_os(exc: OSError, path: str) -> MqkitError:
    """The typed error for a system call on `path` or beside it."""
    if isinstance(exc, FileNotFoundError):
        return ConfigError(f"SQLite file {path}: its folder does not exist; create it first")
    return Denied(f"SQLite file {path}: file and folder must be writable ({exc.strerror})")


def publish_error(error: MqkitError) -> MqkitError:
    """What a failed transaction means to each of its publishes: one that may be tried again is a failed publish."""
    return PublishFailed(str(error)) if isinstance(error, Unavailable) else error


def commit_unknown(exc: sqlite3.Error, path: str) -> PublishUnknown:
    """A COMMIT that broke off: nobody knows what reached the disk."""
    return PublishUnknown(f"SQLite file {path} broke off while committing ({exc}); publish again with the same id")


def in_doubt(exc: sqlite3.Error) -> bool:
    """Did a failing COMMIT leave its outcome open? A full or locked disk rolls back; an I/O error says nothing."""
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR
