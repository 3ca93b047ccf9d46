"""
Key locks of a group with order="key": one process at a time has messages of a key, in their order.

A lock row exists as long as a message of its key is in hand or parked. `held` counts those in hand; with none in hand the
parked message with the smallest id is the head, which alone may be ready or wait for its due time.
"""

from __future__ import annotations

import sqlite3

from mqkit.backends.sqlite.schema import BEHIND_KEY, DUE_LATER, READY

FOLLOWERS = 32  # parked messages a claimed head takes along


def hold(db: sqlite3.Connection, group: int, owner: int, ids: str) -> None:
    """Count freshly leased messages (a JSON list of ids) on the locks of their keys."""
    db.execute(
        """INSERT INTO mq_keylock(grp, key, owner, held)
           SELECT ?1, key, ?2, count(*) FROM mq_message WHERE id IN (SELECT value FROM json_each(?3)) AND key IS NOT NULL
           GROUP BY key
           ON CONFLICT(grp, key) DO UPDATE SET owner = excluded.owner, held = held + excluded.held""",
        (group, owner, ids),
    )


def let_go(db: sqlite3.Connection, group: int, owner: int, ids: str) -> None:
    """Uncount messages about to lose their lease rows; `resolve` must follow."""
    db.execute(
        """UPDATE mq_keylock AS k SET held = k.held - c.n
           FROM (SELECT key, count(*) AS n FROM mq_lease WHERE owner = ?2 AND id IN (SELECT value FROM json_each(?3))
                 AND key IS NOT NULL GROUP BY key) AS c
           WHERE k.grp = ?1 AND k.key = c.key""",
        (group, owner, ids),
    )


def resolve(db: sqlite3.Connection, group: int) -> None:
    """Where the last message in hand of a key is gone, the next parked one becomes the head, or the lock goes."""
    db.execute(
        f"""UPDATE mq_side SET state = {READY} WHERE grp = ?1 AND state = {BEHIND_KEY} AND id IN (
              SELECT (SELECT min(s.id) FROM mq_side s INDEXED BY mq_side_key WHERE s.grp = k.grp AND s.key = k.key)
              FROM mq_keylock k WHERE k.grp = ?1 AND k.held = 0 AND k.owner IS NOT NULL)""",
        (group,),
    )
    db.execute(
        """DELETE FROM mq_keylock WHERE grp = ?1 AND held = 0 AND owner IS NOT NULL AND NOT EXISTS (
             SELECT 1 FROM mq_side s WHERE s.grp = mq_keylock.grp AND s.key = mq_keylock.key)""",
        (group,),
    )
    db.execute("UPDATE mq_keylock SET owner = NULL WHERE grp = ? AND held = 0 AND owner IS NOT NULL", (group,))


def park_followers(db: sqlite3.Connection, group: int, released: str) -> None:
    """Only the head of a key waits for its own time; whoever was released behind another just stands behind it."""
    db.execute(
        f"""UPDATE mq_side SET state = {BEHIND_KEY}, due = NULL
            WHERE grp = ?1 AND state = {DUE_LATER} AND key IS NOT NULL AND id IN (SELECT value FROM json_each(?2))
            AND EXISTS (SELECT 1 FROM mq_side s WHERE s.grp = ?1 AND s.key = mq_side.key AND s.id < mq_side.id)""",
        (group, released),
    )


def park(db: sqlite3.Connection, group: int, ids: str) -> None:
    """Put messages of the log (a JSON list of ids) behind their keys, which are locked already."""
    db.execute(
        f"""INSERT INTO mq_side(grp, id, state, key)
            SELECT ?1, id, {BEHIND_KEY}, key FROM mq_message WHERE id IN (SELECT value FROM json_each(?2))""",
        (group, ids),
    )


def adopt(db: sqlite3.Connection, group: int) -> None:
    """Begin to order a group that nobody has consumed yet: what waits beside the log stands behind its key from now on."""
    db.execute(
        f"""UPDATE mq_side SET key = m.key, state = {BEHIND_KEY} FROM mq_message m
            WHERE mq_side.grp = ? AND m.id = mq_side.id AND m.key IS NOT NULL""",
        (group,),
    )
    db.execute(
        """INSERT INTO mq_keylock(grp, key, owner, held)
           SELECT DISTINCT grp, key, 0, 0 FROM mq_side WHERE grp = ? AND key IS NOT NULL""",
        (group,),
    )
    resolve(db, group)


def unlock_empty(db: sqlite3.Connection, group: int) -> None:
    """After parked messages were removed: a key with nothing in hand gets its next head, or loses its lock."""
    db.execute("UPDATE mq_keylock SET owner = 0 WHERE grp = ? AND held = 0 AND owner IS NULL", (group,))
    resolve(db, group)
