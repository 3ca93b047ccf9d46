"""Appending messages to the log: where an address leads, and the statements that write many rows at once."""

from __future__ import annotations

import functools
import sqlite3
from typing import Any, NamedTuple

from mqkit.backends.base import Address
from mqkit.backends.sqlite import retention
from mqkit.backends.sqlite.schema import READY
from mqkit.backends.sqlite.wire import Parcel
from mqkit.errors import NotFound

# Fixed sizes keep the statements in the connection's cache. One statement for many rows, because sqlite3 gives up the
# GIL at every step: row by row, a busy handler thread makes a batch a hundred times slower, with the write lock held.
_SIZES = (500, 100, 20, 5, 1)
_PROMOTED_AT_ONCE = 500


class Route(NamedTuple):
    """Where an address leads: a destination, and one of its groups or None for all."""

    destination: int
    group: int | None
    kept: bool  # somebody reads it, or it is retained
    retained: bool = False


def destination_name(address: Address) -> str:
    """Names hold no '/', so the dead letters of one thing never meet another."""
    if address.dead:
        return f"dead/{address.kind}/{address.name}" + (f"/{address.group}" if address.group else "")
    return f"{address.kind}/{address.name}"


def group_name(address: Address) -> str:
    """Queues and dead letters have exactly one group, without a name."""
    return "" if address.dead else address.group


def find_route(db: sqlite3.Connection | sqlite3.Cursor, address: Address) -> Route:
    """Raises `NotFound`."""
    row = db.execute(
        "SELECT id, keep > 0, retain > 0 FROM mq_destination WHERE name = ?", (destination_name(address),)
    ).fetchone()
    group = None
    if row and group_name(address):
        group = db.execute(
            "SELECT id FROM mq_group WHERE destination = ? AND name = ?", (row[0], address.group)
        ).fetchone()
    if row is None or (group is None and group_name(address)):
        raise NotFound(f"{address} does not exist in this file; declare it first")
    destination, kept, retained = row
    return Route(destination, group and group[0], bool(kept or retained), bool(retained))


class Appender:
    """Collects what one transaction appends, so that each destination costs few statements."""

    def __init__(self, db: sqlite3.Connection | sqlite3.Cursor, now: float) -> None:
        self._db = db
        self._now = now
        self._routes: dict[Address, Route] = {}
        self._parcels: dict[Address, Parcel] = {}
        self.touched: set[int] = set()  # destinations whose readers may find something now

    def route(self, address: Address) -> Route:
        route = self._routes.get(address)
        if route is None:
            route = self._routes[address] = find_route(self._db, address)
        return route

    def add(self, address: Address, parcel: Parcel) -> None:
        """Raises `NotFound`; nothing of this parcel will be written then."""
        self.route(address)
        waiting = self._parcels.get(address)
        if waiting is None:
            waiting = self._parcels[address] = Parcel()
        waiting.extend(parcel)

    def flush(self) -> None:
        for address, parcel in self._parcels.items():
            route = self._routes[address]
            promote(self._db, route.destination, self._now)  # due before this was published
            append(self._db, route, parcel, self._now)
            if route.retained:  # there may be no consumer to do it
                retention.compact(self._db, route.destination, self._now, limit=2 * parcel.count + 10)
            self.touched.add(route.destination)
        self._parcels.clear()


def append(db: sqlite3.Connection | sqlite3.Cursor, route: Route, parcel: Parcel, now: float) -> None:
    if parcel.delayed:
        _insert(db, _LATER, (route.destination, route.group, now), parcel.delayed, width=7)
    if not route.kept:
        return
    if parcel.plain:
        _append_rows(db, route, parcel.plain, parcel.count, now)
    if parcel.prioritised:
        count = len(parcel.prioritised) // 6
        first = _reserve(db, route, count)
        _insert(db, _PRIORITISED, (first, now, 0), parcel.prioritised, width=6)
        db.execute(
            """INSERT INTO mq_side(grp, id, state, priority) SELECT g.id, m.id, ?, m.priority FROM mq_message m, mq_group g
               WHERE m.id BETWEEN ? AND ? AND g.destination = ? AND (? IS NULL OR g.id = ?)""",
            (READY, first, first + count - 1, route.destination, route.group, route.group),
        )


def promote(
    db: sqlite3.Connection | sqlite3.Cursor, destination: int, now: float, limit: int = _PROMOTED_AT_ONCE
) -> int:
    """Append delayed messages of a destination that are due, as if they were published now; how many."""
    rows = db.execute(
        """SELECT id, grp, due, ttl, priority, key, message_id, envelope, body FROM mq_later
           WHERE destination = ? AND due <= ? ORDER BY due, id LIMIT ?""",
        (destination, now, limit),
    ).fetchall()
    if not rows:
        return 0
    row = db.execute("SELECT keep > 0 OR retain > 0 FROM mq_destination WHERE id = ?", (destination,)).fetchone()
    parcels: dict[int | None, Parcel] = {}
    for _, group, due, ttl, priority, *rest in rows:
        parcel = parcels.setdefault(group, Parcel())
        left = None if ttl is None else due + ttl - now
        if priority > 0:
            parcel.prioritised += (priority, left, *rest)
        else:
            parcel.plain += (left, *rest)
            parcel.count += 1
    for group, parcel in parcels.items():
        append(db, Route(destination, group, bool(row[0])), parcel, now)
    db.execute("DELETE FROM mq_later WHERE id IN (SELECT value FROM json_each(?))", (str([row[0] for row in rows]),))
    return len(rows)


def _append_rows(
    db: sqlite3.Connection | sqlite3.Cursor, route: Route, values: list[Any], count: int, now: float
) -> None:
    _insert(db, _PLAIN, (_reserve(db, route, count), now, route.group), values, width=5)


def _reserve(db: sqlite3.Connection | sqlite3.Cursor, route: Route, count: int) -> int:
    """The first of `count` new ids. A message for one group only is hidden from the counters of the others."""
    [(last,)] = db.execute(
        "UPDATE mq_destination SET last = last + ?1, published = published + ?1 WHERE id = ?2 RETURNING last",
        (count, route.destination),
    ).fetchall()
    if route.group is not None:
        db.execute(
            "UPDATE mq_group SET base = base + ? WHERE destination = ? AND id <> ?",
            (count, route.destination, route.group),
        )
    first: int = last - count + 1
    return first


# ?1 first id, ?2 now, ?3 group; {0} is the row's place in its statement
_PLAIN = (
    "INSERT INTO mq_message(id, published, grp, expires, key, message_id, envelope, body) VALUES ",
    "(?1 + {0}, ?2, ?3, ?2 + ?, ?, ?, ?, ?)",
)
_PRIORITISED = (
    "INSERT INTO mq_message(id, published, grp, priority, expires, key, message_id, envelope, body) VALUES ",
    "(?1 + {0}, ?2, ?3, ?, ?2 + ?, ?, ?, ?, ?)",
)
# ?1 destination, ?2 group, ?3 now
_LATER = (
    "INSERT INTO mq_later(destination, grp, due, priority, ttl, key, message_id, envelope, body) VALUES ",
    "(?1, ?2, ?3 + ?, ?, ?, ?, ?, ?, ?)",
)


def _insert(
    db: sqlite3.Connection | sqlite3.Cursor,
    form: tuple[str, str],
    shared: tuple[Any, ...],
    values: list[Any],
    *,
    width: int,
) -> None:
    done, total = 0, len(values) // width
    first = shared[0]
    numbered = form is not _LATER
    while done < total:
        size = next(size for size in _SIZES if size <= total - done)
        start = (first + done, *shared[1:]) if numbered else shared
        db.execute(_statement(form, size), [*start, *values[done * width : (done + size) * width]])
        done += size


@functools.cache
def _statement(form: tuple[str, str], size: int) -> str:
    return form[0] + ",".join(form[1].format(place) for place in range(size))
