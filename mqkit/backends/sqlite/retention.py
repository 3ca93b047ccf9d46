"""When messages of a topic leave the file: when every group has passed them, and no sooner than the topic's retention."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

_UNNAMED = """NOT EXISTS (SELECT 1 FROM mq_side s WHERE s.id = mq_message.id
                AND s.grp IN (SELECT id FROM mq_group WHERE destination = :destination))
              AND id NOT IN (SELECT l.id FROM mq_lease l JOIN mq_owner o ON o.id = l.owner
                JOIN mq_group g ON g.id = o.grp WHERE g.destination = :destination)"""


def compact(
    db: sqlite3.Connection | sqlite3.Cursor, destination: int, now: float, limit: int, settled: Iterable[int] = ()
) -> int:
    """
    Delete a small step of what nobody needs any more, and of `settled` what is below the mark; rows passed.

    The mark `low` passes rows that a lease or side row still names; these go when they are settled.
    """
    row = db.execute(
        """SELECT low, retain, coalesce((SELECT min(cursor) FROM mq_group WHERE destination = d.id), last)
           FROM mq_destination d WHERE id = ?""",
        (destination,),
    ).fetchone()
    if row is None:
        return 0
    low, retain, passed = row
    below = [id for id in settled if id <= low]
    if below:
        sweep(db, destination, below)
    if passed <= low:
        return 0
    rows = db.execute(
        "SELECT id, published FROM mq_message WHERE id > ? AND id <= ? ORDER BY id LIMIT ?", (low, passed, limit)
    ).fetchall()
    old = [id for id, published in rows if published <= now - retain]
    if len(old) < len(rows):
        high = old[-1] if old else low
    else:
        high = old[-1] if len(rows) == limit else passed
    if high > low:
        db.execute(
            f"DELETE FROM mq_message WHERE id > :low AND id <= :high AND {_UNNAMED}",
            {"destination": destination, "low": low, "high": high},
        )
        db.execute("UPDATE mq_destination SET low = ? WHERE id = ?", (high, destination))
    return len(old)


def sweep(db: sqlite3.Connection | sqlite3.Cursor, destination: int, ids: Iterable[int]) -> None:
    """Delete those of `ids` that no group names any more."""
    db.execute(
        f"DELETE FROM mq_message WHERE id IN (SELECT value FROM json_each(:ids)) AND {_UNNAMED}",
        {"destination": destination, "ids": str(list(ids))},
    )
