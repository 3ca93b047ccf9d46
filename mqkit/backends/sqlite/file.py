"""One database file: its connections, and whether it is still the file that was opened."""

from __future__ import annotations

import ctypes
import os
import pathlib
import sqlite3
from collections.abc import Iterable

from mqkit.backends.sqlite import clock, schema
from mqkit.backends.sqlite.clock import DatabaseClock
from mqkit.backends.sqlite.errors import translate, translate_os
from mqkit.backends.sqlite.options import SqliteOptions
from mqkit.backends.sqlite.write_lock import WriteLock
from mqkit.errors import Closed, ConfigError, MqkitError, StoreDamaged

NETWORK_TYPES = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "fuse.glusterfs",
        "fuse.s3fs",
        "fuse.sshfs",
    )
)
WAL_WARNING = 64 << 20
SPARE_PAGES, SHRINK_STEP = 1000, 500
_INCREMENTAL = 2  # as PRAGMA auto_vacuum says it
_PRAGMAS = (
    "PRAGMA cache_size = -16384",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA journal_size_limit = {WAL_WARNING}",
)

# On a read-only file BEGIN IMMEDIATE succeeds; only this tells.
_REAL_WRITE = "UPDATE mq_meta SET value = value WHERE name = 'schema'"

_inherited: set[str] = set()  # paths that were open in the parent when this process was forked


class File:
    """A file that is open in this process, until `close`. Made on the thread that owns `writer`."""

    def __init__(self, path: str, options: SqliteOptions) -> None:
        refuse_inherited(path)
        self.path = path
        self.options = options
        self.inherited = False
        self._connections: list[sqlite3.Connection] = []
        try:
            refuse_network(path, options)
            self.turn = WriteLock(path)
        except OSError as exc:
            raise translate_os(exc, path) from exc
        try:
            self.writer = self._connect("rwc")
            found_clock = self._as_found(self.writer)
            if found_clock is None:
                with self.turn:
                    self._prepare(self.writer)
                    found_clock = self._bring_up(self.writer)
            self.clock = found_clock
            self._identity = identity(path)
        except sqlite3.Error as exc:
            self._undo()
            raise translate(exc, path) from exc
        except MqkitError:
            self._undo()
            raise

    def reader(self) -> sqlite3.Connection:
        """A further connection for the calling thread, which closes it with `release`. It cannot write."""
        self.check()
        try:
            db = self._connect("rw")
            db.execute("PRAGMA query_only = ON")
        except sqlite3.Error as exc:
            raise translate(exc, self.path) from exc
        return db

    def release(self, db: sqlite3.Connection) -> None:
        """Close a connection; in a forked child it is left alone."""
        if self.inherited:
            return
        self._connections.remove(db)
        db.close()

    def check(self) -> None:
        """A file that was renamed, deleted or replaced swallows writes without an error; only its inode tells."""
        if self.inherited:
            refuse_inherited(self.path)
        try:
            found = identity(self.path)
        except OSError as exc:
            raise translate_os(exc, self.path) from exc
        if found != self._identity:
            fate = "deleted or renamed" if found is None else "replaced by another file"
            raise StoreDamaged(f"SQLite file {self.path} was {fate} while in use; restart the programs that use it")

    def has_room(self) -> bool:
        """Is there more free disk than the reserve, without which a full disk could not even be drained?"""
        try:
            disk = os.statvfs(os.path.dirname(self.path))
        except OSError:
            return True  # whatever happened to the folder, `check` says it better
        return disk.f_bavail * disk.f_frsize >= self.options.reserve

    def shrink(self) -> bool:
        """
        Give at most `SHRINK_STEP` free pages back to the system, under the turn; is there more to give?

        Some stay, for the next backlog. A file made by somebody else keeps its size unless it was made to shrink.
        """
        db = self.writer
        free = _pragma(db, "freelist_count")
        if free <= SPARE_PAGES or _pragma(db, "auto_vacuum") != _INCREMENTAL:
            return False
        step = min(SHRINK_STEP, free - SPARE_PAGES)
        db.executescript(f"PRAGMA incremental_vacuum({step})")  # `execute` would free a single page
        if free - step > SPARE_PAGES:
            return True
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # which cuts the file
        return False

    def wal_size(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except OSError:
            return 0

    def reopen(self) -> None:
        """A new writer in place of one whose COMMIT broke off."""
        self.release(self.writer)
        self.writer = self._connect("rw")

    def close(self) -> None:
        """Give up writer and turn. A reader that somebody still has goes on until it is released."""
        self.release(self.writer)
        self.turn.close()

    def abandon(self) -> None:
        """
        In a forked child. Closing an inherited connection would drop or disturb the parent's locks, so they are leaked on
        purpose, past the end of the interpreter too.
        """
        self.inherited = True
        inherit(self.path)
        for db in self._connections:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))
        self.turn.close()

    def _undo(self) -> None:
        for db in list(self._connections):
            self.release(db)
        self.turn.close()

    def _connect(self, mode: str) -> sqlite3.Connection:
        db = sqlite3.connect(
            f"{pathlib.Path(self.path).as_uri()}?mode={mode}",
            uri=True,
            timeout=self.options.busy,
            isolation_level=None,
            cached_statements=256,
            check_same_thread=False,  # an admin moves between threads; each connection has one user at a time
        )
        self._connections.append(db)
        for pragma in (*_PRAGMAS, f"PRAGMA synchronous = {self.options.synchronous}"):
            db.execute(pragma)
        return db

    def _as_found(self, db: sqlite3.Connection) -> DatabaseClock | None:
        """
        The clock of a file that needs nothing done to it, or None.

        Waits for nobody: the write lock may be held by a transaction of the very caller who opens the file now.
        """
        try:
            now = prepared_clock(db)
            if now is not None:
                db.execute("PRAGMA busy_timeout = 0")
                try_to_write(db)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            # Whoever writes now shows that it can be written, or prepares it at this moment.
            now = prepared_clock(db)
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(self.options.busy * 1000)}")
        return now

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Switch a file to write-ahead logging; under the turn, because two at once fail whatever their timeout."""
        if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            if db.execute("PRAGMA page_count").fetchone()[0] == 0:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("PRAGMA journal_mode = WAL")

    def _bring_up(self, db: sqlite3.Connection) -> DatabaseClock:
        db.execute("BEGIN IMMEDIATE")
        try:
            changed = schema.migrate(db, self.path)
            now = clock.read_clock(db)
            if now is None:
                now, changed = clock.set_clock(db), True
            db.execute(_REAL_WRITE)
            db.execute("COMMIT" if changed else "ROLLBACK")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        return now


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def identity(path: str) -> tuple[int, int] | None:
    """What makes it the same file whatever its name; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def main_file(db: sqlite3.Connection | sqlite3.Cursor) -> str:
    """The path of a connection's main database, empty for one in memory."""
    paths: list[str] = [path for _, name, path in db.execute("PRAGMA database_list").fetchall() if name == "main"]
    return paths[0]


def prepared_clock(db: sqlite3.Connection | sqlite3.Cursor) -> DatabaseClock | None:
    """The clock of a file whose tables are of this version and that was opened since the last boot, else None."""
    if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal" or schema.version(db) != schema.VERSION:
        return None
    return clock.read_clock(db)


def try_to_write(db: sqlite3.Connection) -> None:
    """Raises what a write would raise."""
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute(_REAL_WRITE)
    finally:
        db.execute("ROLLBACK")


def refuse_inherited(path: str) -> None:
    """SQLite's locks do not survive a fork, so a file that was open in the parent would be damaged by the child."""
    if path in _inherited:
        raise Closed(
            f"SQLite file {path} was open when this process was forked and must not be used here; "
            "start processes by spawn, or fork before the file is first used"
        )


def refuse_network(path: str, options: SqliteOptions) -> None:
    kind = network_type(path)
    if kind and options.network == "refuse":
        raise ConfigError(
            f"SQLite file {path} is on a network file system ({kind}), where its locks cannot be trusted; "
            "use a local disk, or accept the risk with the URL option network=warn"
        )


def network_type(path: str) -> str:
    """The type of the network file system a path is on, or the empty string."""
    try:
        mounts = pathlib.Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    kind = mount_type(path, mounts.splitlines())
    return kind if kind in NETWORK_TYPES else ""


def mount_type(path: str, mountinfo: Iterable[str]) -> str:
    """File system type of the longest mount point above `path`, by the lines of proc(5) mountinfo."""
    best, kind = "", ""
    for line in mountinfo:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        if len(point) >= len(best) and (path == point or path.startswith(point.rstrip("/") + "/")):
            best, kind = point, right.split()[0]
    return kind


def inherit(path: str) -> None:
    """In a forked child: never use this file again."""
    _inherited.add(path)


def sqlite_has_wal_reset_defect(version: tuple[int, ...]) -> bool:
    """Source: sqlite.org/wal.html, "The WAL-Reset Bug"; fixed in 3.51.3."""
    return (3, 7, 0) <= version < (3, 51, 3)
