"""One database file: its connections, and whether it is still the file that was opened."""

from __future__ import annotations

import ctypes
import math
import os
import pathlib
import sqlite3
from collections.abc import Callable, Iterable

from mqkit.backends.sqlite import clock, schema
from mqkit.backends.sqlite.clock import DatabaseClock
from mqkit.backends.sqlite.errors import translate_any, translate_os
from mqkit.backends.sqlite.options import SqliteOptions
from mqkit.backends.sqlite.write_lock import WriteLock
from mqkit.errors import Closed, ConfigError, NotFound, StoreDamaged, Unavailable

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

Identity = tuple[int, int]  # device and inode
_GONE = (0, 0)  # is no file


class File:
    """
    A file that is open in this process, until `close`. Made on the thread that owns `writer`.

    Args:
        create: Make the file, or mqkit's tables in it, where they are missing; else that is `NotFound`.
        expected: Which file it must be, because this process used it before under this name.
    """

    def __init__(self, path: str, options: SqliteOptions, *, create: bool, expected: Identity | None) -> None:
        refuse_inherited(path)
        self.path = path
        self.options = options
        self.inherited = False
        self.turn = WriteLock()
        self._connections: list[sqlite3.Connection] = []
        try:
            refuse_network(path, options)
            found = identity(path)
            _refuse_other(path, found, expected)
            if found is None and not create:
                raise NotFound(f"SQLite file {path} does not exist; the first publish or declaration makes it")
            if not os.path.isdir(os.path.dirname(path)):
                raise ConfigError(f"SQLite file {path}: its folder does not exist; create it first")
            self.writer = self._connect("rwc" if create else "rw")
            if not create and not schema.version(self.writer):
                raise NotFound(
                    f"SQLite file {path} holds nothing of mqkit; the first publish or declaration prepares it"
                )
            self.turn.open(path)
            found_clock = self._as_found(self.writer)
            if found_clock is None:
                with self.turn:
                    self._prepare(self.writer)
                    found_clock = self._bring_up(self.writer)
            self.clock = found_clock
            self.identity = identity(path) or _GONE
            _refuse_other(path, self.identity, expected)
        except Exception as exc:
            self._undo()
            error = _not_opened(exc, path)
            if error is exc:
                raise
            raise error from exc

    def reader(self) -> sqlite3.Connection:
        """A further connection for the calling thread, which closes it with `release`. It cannot write."""
        self.check()
        try:
            db = self._connect("rw")
            db.execute("PRAGMA query_only = ON")
        except sqlite3.Error as exc:
            raise _not_opened(exc, self.path) from exc
        return db

    def release(self, db: sqlite3.Connection) -> None:
        """Close a connection; in a forked child it is left alone."""
        if self.inherited:
            return
        self._connections.remove(db)
        db.close()

    def check(self) -> None:
        """A file that was renamed, deleted or replaced swallows writes without an error; only its inode tells."""
        self.refuse_inherited()
        try:
            found = identity(self.path)
        except OSError as exc:
            raise translate_os(exc, self.path) from exc
        _refuse_other(self.path, found, self.identity)

    def refuse_inherited(self) -> None:
        """Raises `Closed` in a forked child, whose SQLite would damage the file. Costs nothing elsewhere."""
        if self.inherited:
            refuse_inherited(self.path)

    def free_space(self) -> float:
        """Bytes the disk has left."""
        try:
            disk = os.statvfs(os.path.dirname(self.path))
        except OSError:
            return math.inf  # whatever happened to the folder, `check` says it better
        return disk.f_bavail * disk.f_frsize

    def room(self, db: sqlite3.Connection | sqlite3.Cursor) -> float:
        """
        Bytes above the reserve, without which a full disk could not even be drained.

        The file will grow by itself to the size it has with what is in the write-ahead log.
        """
        size = _pragma(db, "page_count") * _pragma(db, "page_size")
        owed = max(0, size - os.stat(self.path).st_size)
        return self.free_space() - owed - self.options.reserve

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
        """A new writer in place of one whose transaction broke off."""
        broken, self.writer = self.writer, self._connect("rw")
        self.release(broken)

    def try_to_write(self) -> None:
        """Raises what a write would raise; waits for no foreign program."""
        with self.turn:
            self._impatiently(self.writer, try_to_write)

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
        try:
            for pragma in (*_PRAGMAS, f"PRAGMA synchronous = {self.options.synchronous}"):
                db.execute(pragma)
        except BaseException:
            self.release(db)
            raise
        return db

    def _as_found(self, db: sqlite3.Connection) -> DatabaseClock | None:
        """
        The clock of a file that needs nothing done to it, or None.

        Waits for nobody: the write lock may be held by a transaction of the very caller who opens the file now.
        """
        try:
            now = prepared_clock(db)
            if now is not None:
                self._impatiently(db, try_to_write)
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            # Whoever writes now shows that it can be written, or prepares it at this moment.
            now = prepared_clock(db)
        return now

    def _impatiently(self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do something without waiting for whoever has the write lock."""
        db.execute("PRAGMA busy_timeout = 0")
        try:
            work(db)
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(self.options.busy * 1000)}")

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


def _pragma(db: sqlite3.Connection | sqlite3.Cursor, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _refuse_other(path: str, found: Identity | None, expected: Identity | None) -> None:
    """Raises `StoreDamaged` where another file, or none, is in the place of the one that is in use."""
    if expected is not None and found != expected:
        fate = "deleted or renamed" if found is None else "replaced by another file"
        raise StoreDamaged(
            f"SQLite file {path} was {fate} while in use; restart the programs that use it, or close every bus of this "
            "process that does"
        )


def _not_opened(exc: Exception, path: str) -> Exception:
    """SQLite has one code for a lack of permission and a lack of descriptors; the system tells them apart."""
    code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code == sqlite3.SQLITE_CANTOPEN and _may_be_used(path):
        return Unavailable(f"SQLite file {path} cannot be opened now; this process may have too many open files")
    return translate_any(exc, path)


def _may_be_used(path: str) -> bool:
    if not os.access(os.path.dirname(path), os.R_OK | os.W_OK | os.X_OK):
        return False
    return not os.path.exists(path) or (os.path.isfile(path) and os.access(path, os.R_OK | os.W_OK))


def identity(path: str) -> Identity | None:
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
