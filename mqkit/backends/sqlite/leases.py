"""
Who has which message: claiming, settling, giving back, and taking over from the dead.

Every lease belongs to an owner row, which a receiver renews as a whole. The existence of that row is the fence: whoever
finds it gone has lost everything. Its time is only looked at by others, so a process that merely slept keeps its leases
unless somebody needed them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

from mqkit.backends.base import Release
from mqkit.backends.sqlite import keys, log
from mqkit.backends.sqlite.process import Process, is_dead, this_process
from mqkit.backends.sqlite.schema import BEHIND_KEY, DUE_LATER, READY, SHIFT

_LOOKED_AT = 1000  # log rows one claim of an ordered group parks or leases at most

Counts = tuple[int, int | None, int, int, int, float | None]  # id, attempt, deliveries, lost, solo, since


class Source(NamedTuple):
    """What a receiver takes from: one group of one destination."""

    group: int
    destination: int
    topic: bool  # rows are shared with other groups, so settling does not delete them
    ordered: bool
    priorities: int


class Prospect(NamedTuple):
    """What a look at a group showed."""

    cursor: int
    last: int
    ready: bool
    side_due: float | None
    later_due: float | None
    owner_until: float | None

    def promises(self, now: float) -> bool:
        """May a claim bring something?"""
        return self.last > self.cursor or self.ready or any(due <= now for due in self._times())

    def next_time(self) -> float:
        """When to look again, if nothing happens before."""
        return min(self._times(), default=float("inf"))

    def _times(self) -> list[float]:
        return [time for time in (self.side_due, self.later_due, self.owner_until) if time is not None]


class Claim(NamedTuple):
    """Messages leased: first those with a history, then a run of the log, given by its bounds or its ids."""

    side: Sequence[Counts] = ()
    bounds: tuple[int, int] | None = None
    ids: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.side or self.bounds or self.ids)


def look(db: sqlite3.Connection, source: Source, owner: int, now: float, boot: str) -> Prospect | None:
    """Cheap at any depth, and needs no transaction. None if the group is gone."""
    row = db.execute(
        f"""SELECT g.cursor, d.last,
              EXISTS(SELECT 1 FROM mq_side INDEXED BY mq_side_ready WHERE grp = g.id AND state = {READY}),
              (SELECT due FROM mq_side INDEXED BY mq_side_due WHERE grp = g.id AND state = {DUE_LATER}
                 ORDER BY due LIMIT 1),
              (SELECT due FROM mq_later WHERE destination = d.id ORDER BY due LIMIT 1),
              (SELECT min(CASE boot WHEN ?3 THEN until ELSE 0 END) FROM mq_owner WHERE grp = g.id AND id <> ?2)
            FROM mq_group g CROSS JOIN mq_destination d ON d.id = g.destination WHERE g.id = ?1""",
        (source.group, owner, boot),
    ).fetchone()
    return row and Prospect(*row)


def new_owner(db: sqlite3.Connection, group: int, until: float, boot: str) -> int:
    owner = db.execute(
        "INSERT INTO mq_owner(grp, until, boot, pid, started, namespace) VALUES (?, ?, ?, ?, ?, ?)",
        (group, until, boot, *this_process()),
    ).lastrowid
    assert owner is not None
    return owner


def find_dead(db: sqlite3.Connection, boot: str, judge: Process) -> list[int]:
    """Owners whose processes have certainly ended, as far as the judging process can know."""
    owners = db.execute(
        "SELECT id, pid, started FROM mq_owner WHERE boot = ? AND namespace = ? AND pid <> ? AND until > 0",
        (boot, judge.namespace, judge.pid),
    ).fetchall()
    dead = {process: is_dead(*process) for process in {(pid, started) for _, pid, started in owners}}
    return [id for id, pid, started in owners if dead[pid, started]]


def expire(db: sqlite3.Connection, owners: Sequence[int]) -> set[int]:
    """End the leases of these now; the destinations whose readers may take over."""
    given = str(list(owners))
    db.execute("UPDATE mq_owner SET until = 0 WHERE id IN (SELECT value FROM json_each(?))", (given,))
    rows = db.execute(
        """SELECT DISTINCT g.destination FROM mq_owner o JOIN mq_group g ON g.id = o.grp
           WHERE o.id IN (SELECT value FROM json_each(?))""",
        (given,),
    ).fetchall()
    return {destination for (destination,) in rows}


def renew(db: sqlite3.Connection, owner: int, until: float) -> bool:
    """False: somebody took over, and everything this owner held with it."""
    return db.execute("UPDATE mq_owner SET until = ? WHERE id = ?", (until, owner)).rowcount == 1


def isolate(db: sqlite3.Connection, owner: int, id: int) -> None:
    db.execute("UPDATE mq_lease SET alone = 1 WHERE owner = ? AND id = ?", (owner, id))


def claim(
    db: sqlite3.Connection, source: Source, owner: int, now: float, boot: str, room: int, prospect: Prospect
) -> Claim:
    """Lease at most `room` messages: those with a history first, but at most half a batch of them while the log has more."""
    ready, last = prospect.ready, prospect.last
    if prospect.owner_until is not None and prospect.owner_until <= now:
        ready |= reap(db, source, now, boot, owner)
    if prospect.side_due is not None and prospect.side_due <= now:
        _promote_side(db, source, now, room)
        ready = True
    if prospect.later_due is not None and prospect.later_due <= now and log.promote(db, source.destination, now):
        [(last,)] = db.execute("SELECT last FROM mq_destination WHERE id = ?", (source.destination,)).fetchall()
        ready |= source.priorities > 0
    side: Sequence[Counts] = ()
    if ready:
        shared = last > prospect.cursor and not source.ordered and not source.priorities
        side = _claim_side(db, source, owner, max(1, room // 2) if shared else room)
    rest = room - len(side)
    if rest <= 0 or last <= prospect.cursor:
        return Claim(side)
    if source.ordered:
        return Claim(side, None, _claim_ordered(db, source, owner, prospect.cursor, last, rest))
    return Claim(side, _claim_run(db, source, owner, prospect.cursor, last, rest))


def settle(db: sqlite3.Connection, source: Source, owner: int, ids: Sequence[int]) -> set[int]:
    """Settle for good. The leases decide what is deleted, never the ids alone; which of them were ours."""
    given = str(list(ids))
    if source.ordered:
        keys.let_go(db, source.group, owner, given)
    if not source.topic:
        db.execute(
            """DELETE FROM mq_message WHERE id IN (
                 SELECT id FROM mq_lease WHERE owner = ? AND id IN (SELECT value FROM json_each(?)))""",
            (owner, given),
        )
    ours = {
        id
        for (id,) in db.execute(
            "DELETE FROM mq_lease WHERE owner = ? AND id IN (SELECT value FROM json_each(?)) RETURNING id",
            (owner, given),
        ).fetchall()
    }
    db.execute("UPDATE mq_group SET settled = settled + ? WHERE id = ?", (len(ours), source.group))
    return ours


def release(db: sqlite3.Connection, source: Source, owner: int, releases: Sequence[Release], now: float) -> set[int]:
    """Park messages for a later or immediate hand-out; which of them were ours."""
    rows = [
        (each.delivery.native, now + each.after if each.after > 0 else None, each.attempt, each.since)
        for each in releases
    ]
    given = str([row[0] for row in rows])
    if source.ordered:
        keys.let_go(db, source.group, owner, given)
    db.execute(
        f"""INSERT INTO mq_side(grp, id, due, state, priority, key, attempt, deliveries, lost, solo, since)
            SELECT ?1, l.id, r.due, CASE WHEN r.due IS NOT NULL THEN {DUE_LATER} WHEN l.key IS NOT NULL THEN {BEHIND_KEY}
                ELSE {READY} END, m.priority, l.key, coalesce(r.attempt, l.attempt), coalesce(l.deliveries, 1),
              CASE WHEN r.attempt IS NULL THEN l.lost ELSE 0 END, CASE WHEN r.attempt IS NULL THEN l.solo ELSE 0 END,
              coalesce(r.since, l.since)
            FROM (SELECT json_extract(value, '$[0]') AS id, json_extract(value, '$[1]') AS due,
                json_extract(value, '$[2]') AS attempt, json_extract(value, '$[3]') AS since FROM json_each(?3)) AS r
            CROSS JOIN mq_lease l ON l.owner = ?2 AND l.id = r.id CROSS JOIN mq_message m ON m.id = l.id""",
        (source.group, owner, json.dumps(rows)),
    )
    ours = db.execute(
        "DELETE FROM mq_lease WHERE owner = ? AND id IN (SELECT value FROM json_each(?)) RETURNING id", (owner, given)
    ).fetchall()
    if source.ordered:
        keys.park_followers(db, source.group, given)
    return {id for (id,) in ours}


def give_back(db: sqlite3.Connection, source: Source, owner: int, *, died: bool) -> None:
    """End an owner: what it held is ready again. Where it died, each message remembers that it lost a holder."""
    db.execute(
        f"""INSERT INTO mq_side(grp, id, state, priority, key, attempt, deliveries, lost, solo, since)
            SELECT ?1, l.id, CASE WHEN l.key IS NULL THEN {READY} ELSE {BEHIND_KEY} END, m.priority, l.key, l.attempt,
              coalesce(l.deliveries, 1), l.lost + ?3, l.solo + ?3 * l.alone, l.since
            FROM mq_lease l CROSS JOIN mq_message m ON m.id = l.id WHERE l.owner = ?2""",
        (source.group, owner, int(died)),
    )
    db.execute("DELETE FROM mq_lease WHERE owner = ?", (owner,))
    db.execute("DELETE FROM mq_owner WHERE id = ?", (owner,))
    if source.ordered:
        db.execute("UPDATE mq_keylock SET held = 0 WHERE grp = ? AND owner = ?", (source.group, owner))
        keys.resolve(db, source.group)


def reap(db: sqlite3.Connection, source: Source, now: float, boot: str, owner: int) -> bool:
    """Take over from owners that did not renew in time or lived before a reboot; whether there were any."""
    dead = db.execute(
        "SELECT id FROM mq_owner WHERE grp = ? AND (until <= ? OR boot <> ?) AND id <> ?",
        (source.group, now, boot, owner),
    ).fetchall()
    for (other,) in dead:
        give_back(db, source, other, died=True)
    return bool(dead)


def materialise(db: sqlite3.Connection, source: Source, upto: int) -> None:
    """Turn the log of a group up to an id into side rows, keeping order, so that single ones can be removed."""
    rows = "id > (SELECT cursor FROM mq_group WHERE id = ?1) AND id >= ?2 AND id <= ?3 AND (grp IS NULL OR grp = ?1)"
    bounds = (source.group, source.destination << SHIFT, upto)
    if source.ordered:
        db.execute(
            f"""INSERT OR IGNORE INTO mq_keylock(grp, key, owner, held)
                SELECT DISTINCT ?1, key, 0, 0 FROM mq_message WHERE {rows} AND key IS NOT NULL""",
            bounds,
        )
    db.execute(
        f"""INSERT INTO mq_side(grp, id, state, priority, key)
            SELECT ?1, id, CASE WHEN key IS NULL OR NOT ?4 THEN {READY} ELSE {BEHIND_KEY} END, priority,
              CASE WHEN ?4 THEN key END FROM mq_message WHERE {rows}""",
        (*bounds, source.ordered),
    )
    db.execute("UPDATE mq_group SET cursor = max(cursor, ?2) WHERE id = ?1", (source.group, upto))
    if source.ordered:
        keys.resolve(db, source.group)


def _promote_side(db: sqlite3.Connection, source: Source, now: float, limit: int) -> None:
    state = str(READY)
    if source.ordered:  # the rest of its key is still in hand: it becomes ready when that is settled
        state = f"""CASE WHEN EXISTS (SELECT 1 FROM mq_keylock k WHERE k.grp = ?1 AND k.key = mq_side.key AND k.held > 0)
                    THEN {BEHIND_KEY} ELSE {READY} END"""
    db.execute(
        f"""UPDATE mq_side SET state = {state}, due = NULL WHERE grp = ?1 AND id IN (
              SELECT id FROM mq_side INDEXED BY mq_side_due WHERE grp = ?1 AND state = {DUE_LATER} AND due <= ?2
              ORDER BY due LIMIT ?3)""",
        (source.group, now, limit),
    )


def _claim_side(db: sqlite3.Connection, source: Source, owner: int, limit: int) -> list[Counts]:
    heads = db.execute(
        f"""SELECT id, key FROM mq_side INDEXED BY mq_side_ready WHERE grp = ? AND state = {READY}
            ORDER BY priority DESC, id LIMIT ?""",
        (source.group, limit),
    ).fetchall()
    ids: list[int] = []
    for id, key in heads:
        if len(ids) == limit:
            break
        ids.append(id)
        if source.ordered and key is not None:
            followers = db.execute(
                f"""SELECT id FROM mq_side INDEXED BY mq_side_key
                    WHERE grp = ? AND key = ? AND state = {BEHIND_KEY} ORDER BY id LIMIT ?""",
                (source.group, key, min(keys.FOLLOWERS, limit - len(ids))),
            ).fetchall()
            ids += [follower for (follower,) in followers]
    if not ids:
        return []
    given = str(ids)
    db.execute(
        """INSERT INTO mq_lease(owner, id, key, attempt, deliveries, lost, solo, since)
           SELECT ?1, id, key, attempt, deliveries + 1, lost, solo, since FROM mq_side
           WHERE grp = ?2 AND id IN (SELECT value FROM json_each(?3))""",
        (owner, source.group, given),
    )
    rows = db.execute(
        """DELETE FROM mq_side WHERE grp = ? AND id IN (SELECT value FROM json_each(?))
           RETURNING id, attempt, deliveries + 1, lost, solo, since""",
        (source.group, given),
    ).fetchall()
    if source.ordered:
        keys.hold(db, source.group, owner, given)
    found = {row[0]: row for row in rows}
    return [found[id] for id in ids]


def _claim_run(
    db: sqlite3.Connection, source: Source, owner: int, cursor: int, last: int, limit: int
) -> tuple[int, int] | None:
    """Lease a run of the log and move the cursor past it, and past what is meant for others."""
    [(count, high)] = db.execute(
        """SELECT count(*), max(id) FROM (SELECT id FROM mq_message WHERE id > ?1 AND id <= ?2
             AND (grp IS NULL OR grp = ?3) ORDER BY id LIMIT ?4)""",
        (cursor, last, source.group, limit),
    ).fetchall()
    if count:
        db.execute(
            """INSERT INTO mq_lease(owner, id)
               SELECT ?1, id FROM mq_message WHERE id > ?2 AND id <= ?3 AND (grp IS NULL OR grp = ?4)""",
            (owner, cursor, high, source.group),
        )
    _move_cursor(db, source, high if count == limit else last)
    return (cursor + 1, high) if count else None


def _claim_ordered(db: sqlite3.Connection, source: Source, owner: int, cursor: int, last: int, limit: int) -> list[int]:
    """The same where keys are locked: messages of a key that is taken go behind it, the others are leased."""
    leased: list[int] = []
    looked_at = 0
    while len(leased) < limit and looked_at < _LOOKED_AT and cursor < last:
        rows = db.execute(
            """SELECT m.id, m.key, k.key IS NOT NULL, k.owner = ?4 AND NOT EXISTS (
                   SELECT 1 FROM mq_side s INDEXED BY mq_side_key WHERE s.grp = ?3 AND s.key = m.key)
               FROM (SELECT id, key FROM mq_message WHERE id > ?1 AND id <= ?2 AND (grp IS NULL OR grp = ?3)
                     ORDER BY id LIMIT ?5) AS m
               LEFT JOIN mq_keylock k ON k.grp = ?3 AND k.key = m.key ORDER BY m.id""",
            (cursor, last, source.group, owner, limit - len(leased)),
        ).fetchall()
        cursor = rows[-1][0] if len(rows) == limit - len(leased) else last
        looked_at += len(rows)
        free = [id for id, key, locked, ours in rows if key is None or not locked or ours]
        taken = [id for id, key, locked, ours in rows if not (key is None or not locked or ours)]
        if free:
            given = str(free)
            db.execute(
                """INSERT INTO mq_lease(owner, id, key)
                   SELECT ?, id, key FROM mq_message WHERE id IN (SELECT value FROM json_each(?))""",
                (owner, given),
            )
            keys.hold(db, source.group, owner, given)
            leased += free
        if taken:
            keys.park(db, source.group, str(taken))
    _move_cursor(db, source, cursor)
    return leased


def _move_cursor(db: sqlite3.Connection, source: Source, cursor: int) -> None:
    db.execute("UPDATE mq_group SET cursor = ? WHERE id = ?", (cursor, source.group))
