"""Declaring, describing and changing what is in the file."""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from mqkit.backends.base import Address, Declaration, Depth, Outgoing, Received
from mqkit.backends.sqlite import keys, leases, log, retention, wire
from mqkit.backends.sqlite.committer import Committer
from mqkit.backends.sqlite.errors import translate
from mqkit.backends.sqlite.leases import Source
from mqkit.backends.sqlite.log import destination_name, group_name
from mqkit.backends.sqlite.schema import DUE_LATER, SHIFT, UNDECIDED
from mqkit.backends.sqlite.shared import release
from mqkit.backends.sqlite.ticket import Transaction
from mqkit.backends.sqlite.wire import Parcel
from mqkit.errors import Closed, ConfigError, NotFound, TopologyMismatch
from mqkit.native import SqliteTopic

P = ParamSpec("P")
T = TypeVar("T")

_AT_ONCE = 5000  # rows one transaction removes, so that nobody waits long for the write lock


def _typed(method: Callable[P, T]) -> Callable[P, T]:
    """Reads raise sqlite3's errors; nobody outside shall see them."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except sqlite3.Error as exc:
            admin: Any = args[0]
            error = translate(exc, admin.path)
            admin._open().condemn(error)
            raise error from exc

    return wrapped


class SqliteAdmin:
    """
    See `base.Admin`. Reads on a connection of its own, writes through the commit thread.

    Only `declare` makes a file; without one everything else is `NotFound`.
    """

    def __init__(self, path: str, acquire: Callable[..., Committer]) -> None:
        self.path = path
        self._acquire = acquire
        self._committer: Committer | None = None
        self._reader: sqlite3.Connection | None = None
        self._last_browsed: tuple[Address, str, int] | None = None
        self._closed = False
        with contextlib.suppress(NotFound):  # which is said by whatever needs it
            self._open()

    def _open(self, *, create: bool = False) -> Committer:
        if self._closed:
            raise Closed(f"this admin of SQLite file {self.path} was closed")
        if self._committer is None:
            committer = self._acquire(create=create)
            try:
                self._reader = committer.file.reader()
            except BaseException:
                release(committer)
                raise
            self._committer = committer
        return self._committer

    @property
    def _db(self) -> sqlite3.Connection:
        """Raises `NotFound` where there is no file."""
        self._open().file.refuse_inherited()
        assert self._reader is not None
        return self._reader

    @_typed
    def declare(self, declarations: Sequence[Declaration]) -> None:
        committer = self._open(create=True)
        if not all(_stands(self._db, each) for each in declarations):
            committer.run(lambda tx: _declare_all(tx, declarations))

    @_typed
    def check(self, declarations: Sequence[Declaration]) -> None:
        for each in declarations:
            if not _exists(self._db, each):
                raise NotFound(f"{each.address} does not exist in SQLite file {self.path}")

    @_typed
    def describe(self) -> Sequence[Depth]:
        db, now = self._db, self._open().file.clock.now()
        db.execute("BEGIN")  # one moment for all counts
        try:
            inflight = dict(
                db.execute(
                    "SELECT o.grp, count(*) FROM mq_owner o CROSS JOIN mq_lease l ON l.owner = o.id GROUP BY o.grp"
                ).fetchall()
            )
            side = dict(
                db.execute(
                    f"SELECT grp, count(*) FROM mq_side INDEXED BY mq_side_due WHERE state = {DUE_LATER} AND due > ? GROUP BY grp",
                    (now,),
                ).fetchall()
            )
            due: dict[tuple[int, int | None], tuple[int, int]] = {
                (destination, group): (ready, delayed)
                for destination, group, ready, delayed in db.execute(
                    "SELECT destination, grp, sum(due <= :now), sum(due > :now) FROM mq_later GROUP BY destination, grp",
                    {"now": now},
                ).fetchall()
            }
            depths = []
            for id, name, published in db.execute(
                "SELECT id, name, published FROM mq_destination ORDER BY id"
            ).fetchall():
                address = _address_of(name)
                groups = db.execute(
                    "SELECT id, name, base, settled FROM mq_group WHERE destination = ? ORDER BY id", (id,)
                ).fetchall()
                shared = due.get((id, None), (0, 0))
                for group, group_called, base, settled in groups:
                    ready, delayed = due.get((id, group), (0, 0))
                    if address.kind != "topic" or address.dead:
                        ready, delayed = ready + shared[0], delayed + shared[1]
                    waiting = published - base - settled - inflight.get(group, 0) - side.get(group, 0)
                    depths.append(
                        Depth(
                            address._replace(group=group_called or address.group),
                            waiting + ready,
                            inflight.get(group, 0),
                            delayed + side.get(group, 0),
                        )
                    )
                if not groups or (address.kind == "topic" and not address.dead and any(shared)):
                    depths.append(Depth(address, shared[0], 0, shared[1]))
            return depths
        finally:
            db.execute("COMMIT")

    @_typed
    def count(self, address: Address) -> int:
        source = find_source(self._db, address)
        published, later = self._db.execute(
            f"""SELECT (SELECT count(*) FROM mq_message m LEFT JOIN mq_side s ON s.grp = :group AND s.id = m.id
                        WHERE m.id > :low AND m.id < :high AND {_WAITING}),
                       (SELECT count(*) FROM mq_later WHERE destination = :destination
                        AND (grp = :group OR (grp IS NULL AND NOT :topic)))""",
            _bounds(source) | {"destination": source.destination, "topic": source.topic},
        ).fetchone()
        return int(published + later)

    @_typed
    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        db = self._db
        source = find_source(db, address)
        start = self._place(source, address, after)
        if start is None:
            return []
        rows = db.execute(
            f"""SELECT {wire.MESSAGE}, s.attempt, s.deliveries, s.lost, s.solo, s.since FROM mq_message m
                LEFT JOIN mq_side s ON s.grp = :group AND s.id = m.id
                WHERE m.id > :low AND m.id < :high AND {_WAITING} ORDER BY m.id LIMIT :limit""",
            _bounds(source) | {"low": max(start, source.destination << SHIFT), "limit": limit * (start >= 0)},
        ).fetchall()
        found = [_browsed(row, address) for row in rows]
        if len(rows) < limit:  # after the log: what is not yet published, by negative place
            rows = db.execute(
                """SELECT -id, NULL, key, message_id, envelope, body, priority, NULL, 0, 0, 0, NULL FROM mq_later
                   WHERE destination = ? AND (grp = ? OR (grp IS NULL AND NOT ?)) AND id > ? ORDER BY id LIMIT ?""",
                (source.destination, source.group, source.topic, max(0, -start), limit - len(rows)),
            ).fetchall()
            found += [_browsed(row, address) for row in rows]
        if found:
            self._last_browsed = (address, found[-1].id, found[-1].native)
        return found

    @_typed
    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        if not replacements:
            return 0
        return self._open().run(lambda tx: _replace(tx, address, replacements))

    @_typed
    def purge(self, address: Address) -> int:
        total = 0
        while removed := self._open().run(lambda tx: _purge(tx, find_source(tx.db, address))):
            total += removed
        return total

    @_typed
    def delete(self, address: Address) -> None:
        with contextlib.suppress(NotFound):
            for each in _related(self._db, address):
                with contextlib.suppress(NotFound):
                    self.purge(each)
            self._open().run(lambda tx: _delete(tx, address))

    def close(self) -> None:
        self._closed = True
        committer, reader = self._committer, self._reader
        self._committer = self._reader = None
        if committer is not None and reader is not None:
            committer.file.release(reader)
            release(committer)

    def _place(self, source: Source, address: Address, after: str | None) -> int | None:
        """The row after which to go on; negative: in the waiting room of delayed messages. None: nobody knows."""
        if after is None:
            return 0
        if self._last_browsed and self._last_browsed[:2] == (address, after):
            return self._last_browsed[2]
        row = self._db.execute(
            """SELECT id FROM mq_message WHERE id > ? AND id < ? AND message_id = ? UNION ALL
               SELECT -id FROM mq_later WHERE destination = ? AND message_id = ? LIMIT 1""",
            (source.destination << SHIFT, (source.destination + 1) << SHIFT, after, source.destination, after),
        ).fetchone()
        return row and int(row[0])


# Waiting in group :group: given back, parked or prioritised, or not yet reached by its cursor.
_WAITING = """(s.id IS NOT NULL OR (m.id > (SELECT cursor FROM mq_group WHERE id = :group) AND (m.grp IS NULL OR m.grp = :group)))"""


def find_source(db: sqlite3.Connection, address: Address) -> Source:
    """The group behind an address one can receive from. Raises `NotFound`."""
    row = db.execute(
        """SELECT g.id, d.id, d.kind = 'topic', g.ordered = 1, d.priorities FROM mq_destination d
           JOIN mq_group g ON g.destination = d.id AND g.name = ? WHERE d.name = ?""",
        (group_name(address), destination_name(address)),
    ).fetchone()
    if row is None:
        raise NotFound(f"{address} does not exist in this file; declare it first")
    return Source(row[0], row[1], bool(row[2]), bool(row[3]), row[4])


def open_source(db: sqlite3.Connection, declaration: Declaration) -> Source:
    """Raises `NotFound`, or `TopologyMismatch` where the group was declared with another order."""
    if not _exists(db, declaration):
        raise NotFound(f"{declaration.address} does not exist in this file; declare it first")
    _decide(db, declaration)
    return find_source(db, declaration.address)


def _exists(db: sqlite3.Connection, declaration: Declaration) -> bool:
    """Raises `TopologyMismatch` if it does, but with other options."""
    address = declaration.address
    row = db.execute(
        "SELECT id, keyed, priorities, retain FROM mq_destination WHERE name = ?", (destination_name(address),)
    ).fetchone()
    if row is None:
        return False
    if address.dead:
        return True
    id, keyed, priorities, retain = row
    _compare(address, "keyed", bool(keyed), declaration.keyed)
    _compare(address, "priorities", priorities, declaration.priorities)
    wanted = _retain(declaration)
    if wanted is not None and not address.group:
        _compare(address, "retain", retain, wanted)
    if address.kind == "broadcast" or (address.kind == "topic" and not address.group):
        return True
    group = db.execute(
        "SELECT ordered FROM mq_group WHERE destination = ? AND name = ?", (id, group_name(address))
    ).fetchone()
    if group is not None and group[0] != UNDECIDED and declaration.order is not None:
        _compare(address, "order", "key" if group[0] else "none", declaration.order)
    return group is not None


def _is_source(address: Address) -> bool:
    """Can a group of consumers receive from it?"""
    return address.dead or address.kind == "queue" or (address.kind == "topic" and bool(address.group))


def _exists_dead(db: sqlite3.Connection, address: Address) -> bool:
    """Are the dead letters there that belong to it, if any do? Somebody may have deleted them alone."""
    return address.dead or not _is_source(address) or _exists(db, Declaration(address.dead_letters))


def _stands(db: sqlite3.Connection, declaration: Declaration) -> bool:
    """Is nothing left to create or to decide?"""
    exists = _exists(db, declaration) and not _is_undecided(db, declaration)
    return exists and _exists_dead(db, declaration.address)


def _compare(address: Address, option: str, have: object, want: object) -> None:
    if have != want:
        raise TopologyMismatch(f"{address} exists with {option}={have!r}, and {option}={want!r} is declared")


def _is_undecided(db: sqlite3.Connection, declaration: Declaration) -> bool:
    """Is this the first declaration that says whether an existing group keeps the order of keys?"""
    address = declaration.address
    row = db.execute(
        """SELECT g.ordered FROM mq_destination d JOIN mq_group g ON g.destination = d.id AND g.name = ?
           WHERE d.name = ?""",
        (group_name(address), destination_name(address)),
    ).fetchone()
    return row is not None and row[0] == UNDECIDED and declaration.order is not None


def _retain(declaration: Declaration) -> float | None:
    return declaration.native.retain if isinstance(declaration.native, SqliteTopic) else None


def _declare_all(tx: Transaction, declarations: Sequence[Declaration]) -> None:
    for each in declarations:
        _declare(tx, each)


def _declare(tx: Transaction, declaration: Declaration) -> None:
    address = declaration.address
    if _exists(tx.db, declaration):
        _decide(tx.db, declaration)
    else:
        if declaration.order == "key" and declaration.priorities:
            raise ConfigError(f"{address}: order='key' and priorities do not go together")
        destination = _create_destination(tx.db, declaration)
        if _is_source(address):
            _create_group(tx, declaration, destination)
    if not _exists_dead(tx.db, address):
        _declare(tx, Declaration(address.dead_letters))


def _decide(db: sqlite3.Connection, declaration: Declaration) -> None:
    if not _is_undecided(db, declaration):
        return
    group = find_source(db, declaration.address).group
    db.execute("UPDATE mq_group SET ordered = ? WHERE id = ?", (declaration.order == "key", group))
    if declaration.order == "key":
        keys.adopt(db, group)


def _create_destination(db: sqlite3.Connection, declaration: Declaration) -> int:
    address = declaration.address
    name = destination_name(address)
    row = db.execute("SELECT id FROM mq_destination WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = db.execute(
            "INSERT INTO mq_destination(name, kind, keyed, priorities, retain) VALUES (?, ?, ?, ?, ?) RETURNING id",
            (
                name,
                "queue" if address.dead else address.kind,
                declaration.keyed,
                declaration.priorities,
                _retain(declaration) or 0.0,
            ),
        ).fetchall()[0]
        db.execute(f"UPDATE mq_destination SET last = id << {SHIFT}, low = id << {SHIFT} WHERE id = ?", (row[0],))
    id: int = row[0]
    return id


def _create_group(tx: Transaction, declaration: Declaration, destination: int) -> None:
    while log.promote(tx.db, destination, tx.now):  # due before this group was there
        pass
    last, low, published = tx.db.execute(
        "SELECT last, low, published FROM mq_destination WHERE id = ?", (destination,)
    ).fetchone()
    cursor = last
    if declaration.start == "earliest":
        cursor = low
        [(kept,)] = tx.db.execute(
            "SELECT count(*) FROM mq_message WHERE id > ? AND id <= ? AND grp IS NULL", (low, last)
        ).fetchall()
        published -= kept
    ordered = UNDECIDED if declaration.order is None else declaration.order == "key"
    tx.db.execute(
        "INSERT INTO mq_group(destination, name, ordered, cursor, base) VALUES (?, ?, ?, ?, ?)",
        (destination, group_name(declaration.address), ordered, cursor, published),
    )
    tx.db.execute("UPDATE mq_destination SET keep = keep + 1 WHERE id = ?", (destination,))
    tx.touch(destination)


def _address_of(name: str) -> Address:
    parts = name.split("/")
    dead = parts[0] == "dead"
    kind, called, *group = parts[dead:]
    return Address(kind, called, group[0] if group else "", dead)  # type: ignore[arg-type]  # written by `destination_name`


def _browsed(row: tuple[Any, ...], address: Address) -> Received:
    _, attempt, deliveries, lost, solo, since = row[6:]
    counts = (attempt, deliveries or 0, lost or 0, solo or 0, since)
    return wire.received(row[:7], counts, 0, address)


def _replace(tx: Transaction, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
    source = find_source(tx.db, address)
    wanted = json.dumps(list(replacements))
    logged = tx.db.execute(
        f"""SELECT m.id, m.message_id FROM mq_message m LEFT JOIN mq_side s ON s.grp = :group AND s.id = m.id
            WHERE m.id > :low AND m.id < :high AND m.message_id IN (SELECT value FROM json_each(:wanted)) AND {_WAITING}""",
        _bounds(source) | {"wanted": wanted},
    ).fetchall()
    later = tx.db.execute(
        """DELETE FROM mq_later WHERE destination = ? AND (grp = ? OR (grp IS NULL AND NOT ?))
           AND message_id IN (SELECT value FROM json_each(?)) RETURNING id, message_id""",
        (source.destination, source.group, source.topic, wanted),
    ).fetchall()
    if logged:
        _remove(tx, source, [id for id, _ in logged])
    found = dict.fromkeys(message_id for _, message_id in (*logged, *later))
    for message_id in found:
        for copy in replacements[message_id]:
            parcel = Parcel()
            parcel.add(copy)
            tx.appender.add(copy.address, parcel)
    return len(found)


def _purge(tx: Transaction, source: Source) -> int:
    rows = tx.db.execute(
        f"""SELECT m.id FROM mq_message m LEFT JOIN mq_side s ON s.grp = :group AND s.id = m.id
            WHERE m.id > :low AND m.id < :high AND {_WAITING} ORDER BY m.id LIMIT :limit""",
        _bounds(source) | {"limit": _AT_ONCE},
    ).fetchall()
    if rows:
        _remove(tx, source, [id for (id,) in rows])
    later = tx.db.execute(
        """DELETE FROM mq_later WHERE id IN (SELECT id FROM mq_later WHERE destination = ?
             AND (grp = ? OR (grp IS NULL AND NOT ?)) LIMIT ?) RETURNING id""",
        (source.destination, source.group, source.topic, _AT_ONCE),
    ).fetchall()
    return len(rows) + len(later)


def _bounds(source: Source) -> dict[str, int]:
    """The group of a source, and where the log of its destination begins and ends."""
    return {
        "group": source.group,
        "low": source.destination << SHIFT,
        "high": (source.destination + 1) << SHIFT,
    }


def _remove(tx: Transaction, source: Source, ids: Sequence[int]) -> None:
    """Waiting messages of a group, as if they were settled."""
    given = str(list(ids))
    if source.topic:  # others may need the rows, so this group's cursor must go past them
        leases.materialise(tx.db, source, max(ids))
    tx.db.execute("DELETE FROM mq_side WHERE grp = ? AND id IN (SELECT value FROM json_each(?))", (source.group, given))
    if source.topic:
        [(low,)] = tx.db.execute("SELECT low FROM mq_destination WHERE id = ?", (source.destination,)).fetchall()
        retention.sweep(tx.db, source.destination, [id for id in ids if id <= low])
    else:
        tx.db.execute("DELETE FROM mq_message WHERE id IN (SELECT value FROM json_each(?))", (given,))
    tx.db.execute("UPDATE mq_group SET settled = settled + ? WHERE id = ?", (len(ids), source.group))
    if source.ordered:
        keys.unlock_empty(tx.db, source.group)


def _related(db: sqlite3.Connection, address: Address) -> list[Address]:
    """Every source that goes with an address."""
    sources = [address]
    if address.kind == "topic" and not address.group:
        groups = db.execute(
            "SELECT g.name FROM mq_group g JOIN mq_destination d ON d.id = g.destination WHERE d.name = ?",
            (destination_name(address),),
        ).fetchall()
        sources = [address._replace(group=group) for (group,) in groups]
    return sources if address.dead else [*sources, *(each.dead_letters for each in sources)]


def _delete(tx: Transaction, address: Address) -> None:
    for source in _related(tx.db, address):
        if source.dead or not source.group:
            _delete_destination(tx, source)
        else:
            with contextlib.suppress(NotFound):
                _delete_group(tx, find_source(tx.db, source))
    if address.kind == "topic" and not address.group:
        _delete_destination(tx, address)


def _delete_group(tx: Transaction, source: Source) -> None:
    db, group = tx.db, source.group
    named = db.execute(
        """SELECT id FROM mq_side WHERE grp = ? UNION
           SELECT l.id FROM mq_lease l JOIN mq_owner o ON o.id = l.owner WHERE o.grp = ?""",
        (group, group),
    ).fetchall()
    _forget_group(db, group)
    db.execute("DELETE FROM mq_later WHERE destination = ? AND grp = ?", (source.destination, group))
    db.execute("UPDATE mq_destination SET keep = keep - 1 WHERE id = ?", (source.destination,))
    [(low,)] = db.execute("SELECT low FROM mq_destination WHERE id = ?", (source.destination,)).fetchall()
    retention.sweep(db, source.destination, [id for (id,) in named if id <= low])
    tx.touch(source.destination)


def _delete_destination(tx: Transaction, address: Address) -> None:
    db = tx.db
    row = db.execute("SELECT id FROM mq_destination WHERE name = ?", (destination_name(address),)).fetchone()
    if row is None:
        return
    id = row[0]
    for (group,) in db.execute("SELECT id FROM mq_group WHERE destination = ?", (id,)).fetchall():
        _forget_group(db, group)
    db.execute("DELETE FROM mq_owner WHERE grp = ?", (-id,))  # listeners of a broadcast
    db.execute("DELETE FROM mq_message WHERE id > ? AND id < ?", (id << SHIFT, (id + 1) << SHIFT))
    db.execute("DELETE FROM mq_later WHERE destination = ?", (id,))
    db.execute("DELETE FROM mq_destination WHERE id = ?", (id,))
    tx.touch(id)


def _forget_group(db: sqlite3.Connection, group: int) -> None:
    db.execute("DELETE FROM mq_lease WHERE owner IN (SELECT id FROM mq_owner WHERE grp = ?)", (group,))
    for table in ("mq_owner", "mq_side", "mq_keylock"):
        db.execute(f"DELETE FROM {table} WHERE grp = ?", (group,))
    db.execute("DELETE FROM mq_group WHERE id = ?", (group,))
