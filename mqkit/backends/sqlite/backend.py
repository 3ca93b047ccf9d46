"""SQLite: one file shared by the processes of a machine, with one commit thread in each of them."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from mqkit._clock import Clock
from mqkit._url import Url, parse_options
from mqkit.backends.base import Admin, Capabilities, Declaration, Outgoing, Publisher, Receiver
from mqkit.backends.sqlite.admin import SqliteAdmin, open_source
from mqkit.backends.sqlite.committer import Committer
from mqkit.backends.sqlite.errors import InTransaction, translate
from mqkit.backends.sqlite.file import (
    WAL_WARNING,
    identity,
    main_file,
    network_type,
    prepared_clock,
    sqlite_has_wal_reset_defect,
)
from mqkit.backends.sqlite.listener import SqliteListener
from mqkit.backends.sqlite.log import Appender
from mqkit.backends.sqlite.options import SqliteOptions, file_path
from mqkit.backends.sqlite.publisher import SqlitePublisher, size_of
from mqkit.backends.sqlite.receiver import SqliteReceiver
from mqkit.backends.sqlite.shared import acquire, forget, release
from mqkit.backends.sqlite.ticket import lacks_room, room_for
from mqkit.backends.sqlite.wire import Parcel
from mqkit.errors import CapabilityMissing, ConfigError, NotFound, PublishFailed
from mqkit.native import SqliteTransaction

_OLDEST = (3, 35, 0)  # RETURNING


class SqliteBackend:
    """See `base.Backend`. The file is created by the first publisher, or by the first declaration."""

    virtual_clock = False

    def __init__(self, url: Url, clock: Clock) -> None:
        del clock  # leases are shared between processes, so time is the file's
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; mqkit needs 3.35 or newer")
        self._options = parse_options(SqliteOptions, url)
        self._path = file_path(url)
        self._lock = threading.Lock()
        self._committer: Committer | None = None
        self.capabilities = Capabilities(
            name="sqlite",
            durable="yes",
            survives_process=True,
            processes=True,
            atomic=True,
            order_by_key=True,
            delay=math.inf,
            release=math.inf,
            delay_resolution=0.001,
            ttl=True,
            priorities=255,
            replay=True,
            broadcast=True,
            counts_deliveries=True,
            lost="exact",
            lease=self._options.lease,
            wake=0.25,
            max_body=self._options.max_body,
            settles_at_once=True,
            group_commit=True,
        )

    def publisher(self) -> Publisher:
        return SqlitePublisher(self._acquire(create=True))

    def receiver(self, source: Declaration, window: int) -> Receiver:
        del window  # a claim never takes more than the room it is given
        committer = self._acquire()
        try:
            if source.address.kind == "broadcast":
                return SqliteListener(committer, source.address, self._options.lease)
            found = committer.run(lambda tx: open_source(tx.db, source))
            return SqliteReceiver(committer, source.address, found, self._options.lease)
        except BaseException:
            release(committer)
            raise

    def admin(self) -> Admin:
        return SqliteAdmin(self._path, self._acquire)

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        if not isinstance(native, SqliteTransaction):
            raise CapabilityMissing(f"sqlite publishes within a SqliteTransaction, not a {type(native).__name__}")
        connection: sqlite3.Connection = native.connection
        try:
            if not connection.in_transaction:
                raise InTransaction("the connection is not in a transaction; begin it with BEGIN IMMEDIATE")
            db = connection.cursor()
            db.row_factory = None
            committer = self._kept_open(db)
            committer.file.check()
            if self._options.reserve and committer.file.room(db) < room_for(size_of(batch)):
                raise PublishFailed(f"{lacks_room(self._path)}; not published, free some space")
            self._refuse_other_file(db)
            _append_all(Appender(db, committer.file.clock.now()), batch)
        except sqlite3.Error as exc:
            raise translate(exc, self._path) from exc

    def warnings(self) -> Iterable[str]:
        options, path = self._options, self._path
        if options.synchronous == "normal":
            yield (
                f"SQLite file {path}: synchronous=normal survives the death of processes, but a power loss may take back "
                "messages whose publish returned"
            )
        if sqlite_has_wal_reset_defect(sqlite3.sqlite_version_info):
            yield (
                f"SQLite {sqlite3.sqlite_version} has the WAL-reset defect (3.7.0 to 3.51.2): two checkpoints racing with a "
                "writer may corrupt the file. mqkit's processes checkpoint one at a time; keep other writers and "
                "checkpoints away, or upgrade SQLite to 3.51.3"
            )
        network = network_type(path)
        if network:
            yield f"SQLite file {path} is on a network file system ({network}), whose locks SQLite cannot trust"
        try:
            committer = self._acquire()
        except NotFound:
            return
        try:
            size = committer.file.wal_size()
        finally:
            release(committer)
        if size > WAL_WARNING:
            yield (
                f"SQLite file {path}: its write-ahead log has grown to {size >> 20} MiB; "
                "some program keeps a read transaction open"
            )

    def close(self) -> None:
        with self._lock:
            committer, self._committer = self._committer, None
        if committer is not None:
            release(committer)
        forget(self._path, self)

    def after_fork(self) -> None:
        """The file's own guard has marked it already: any use of it in this process is refused."""

    def _acquire(self, *, create: bool = False) -> Committer:
        return acquire(self._path, self._options, self, create=create)

    def _kept_open(self, db: sqlite3.Cursor) -> Committer:
        """For publishes on the user's connection, which come one by one and may hold the write lock of the file."""
        with self._lock:
            if self._committer is None:
                self._refuse_other_file(db)
                if prepared_clock(db) is None:
                    raise InTransaction(
                        f"SQLite file {self._path} has to be prepared for messages, which your transaction prevents; "
                        "open the bus or declare the destination before you begin it"
                    )
                self._committer = self._acquire()
            return self._committer

    def _refuse_other_file(self, db: sqlite3.Cursor) -> None:
        ours = identity(self._path)
        if ours is None or identity(main_file(db)) != ours:
            raise InTransaction(f"the connection is not to SQLite file {self._path}, which this bus uses")


def _append_all(appender: Appender, batch: Sequence[Outgoing]) -> None:
    for message in batch:
        parcel = Parcel()
        parcel.add(message)
        appender.add(message.address, parcel)
    appender.flush()
