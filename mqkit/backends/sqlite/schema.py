"""
The tables inside the file.

A message is one row, written once, and a group is a cursor over these rows: `id` is destination << 40 | sequence, so each
destination is one contiguous range in commit order. A message in somebody's hands has a lease row; only exceptions (failed,
given back, prioritised, behind its key) have a side row.
"""

from __future__ import annotations

import sqlite3

from mqkit.errors import StoreDamaged

VERSION = 2
SHIFT = 40

UNDECIDED = -1  # `ordered` of a group that nobody has consumed yet; until then it works like one without order

READY, DUE_LATER, BEHIND_KEY = 0, 1, 2  # states of a side row

# mq_destination.keep    someone may read it: groups, or listeners of a broadcast; with none, and no retain, nothing is stored
# mq_destination.low     everything up to here is gone, or named by a side or lease row
# mq_group.ordered       order="key", fixed when the first consumer declares the group
# mq_group.base          `published` at declaration, corrected for what only others (or only this one) can see
# mq_owner.started       with `namespace`, by which others see that its process is dead; NULL: they cannot
# mq_message.grp         NULL: every group, 0: whoever has a side row for it, else this group alone
# mq_lease               attempt NULL: as the envelope says; deliveries NULL: the first one
# mq_keylock             exists while a message of the key is in hand (held) or parked
STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "CREATE TABLE mq_meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
        """CREATE TABLE mq_destination(id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE,
             kind TEXT NOT NULL, keyed INTEGER NOT NULL DEFAULT 0, priorities INTEGER NOT NULL DEFAULT 0,
             retain REAL NOT NULL DEFAULT 0, keep INTEGER NOT NULL DEFAULT 0, last INTEGER NOT NULL DEFAULT 0,
             published INTEGER NOT NULL DEFAULT 0, low INTEGER NOT NULL DEFAULT 0)""",
        """CREATE TABLE mq_group(id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL, name TEXT NOT NULL,
             ordered INTEGER NOT NULL, cursor INTEGER NOT NULL, base INTEGER NOT NULL, settled INTEGER NOT NULL DEFAULT 0,
             UNIQUE(destination, name))""",
        """CREATE TABLE mq_message(id INTEGER PRIMARY KEY, grp INTEGER, priority INTEGER NOT NULL DEFAULT 0,
             published REAL NOT NULL, expires REAL, key TEXT, message_id TEXT NOT NULL, envelope BLOB NOT NULL,
             body BLOB NOT NULL)""",
        """CREATE TABLE mq_later(id INTEGER PRIMARY KEY AUTOINCREMENT, destination INTEGER NOT NULL, grp INTEGER,
             due REAL NOT NULL, ttl REAL, priority INTEGER NOT NULL DEFAULT 0, key TEXT, message_id TEXT NOT NULL,
             envelope BLOB NOT NULL, body BLOB NOT NULL)""",
        "CREATE INDEX mq_later_due ON mq_later(destination, due, id)",
        """CREATE TABLE mq_owner(id INTEGER PRIMARY KEY AUTOINCREMENT, grp INTEGER NOT NULL, until REAL NOT NULL,
             boot TEXT NOT NULL, pid INTEGER NOT NULL)""",
        """CREATE TABLE mq_lease(owner INTEGER NOT NULL, id INTEGER NOT NULL, key TEXT, attempt INTEGER,
             deliveries INTEGER, lost INTEGER NOT NULL DEFAULT 0, solo INTEGER NOT NULL DEFAULT 0, since REAL,
             alone INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(owner, id)) WITHOUT ROWID""",
        """CREATE TABLE mq_side(grp INTEGER NOT NULL, id INTEGER NOT NULL, state INTEGER NOT NULL, due REAL,
             priority INTEGER NOT NULL DEFAULT 0, key TEXT, attempt INTEGER, deliveries INTEGER NOT NULL DEFAULT 0,
             lost INTEGER NOT NULL DEFAULT 0, solo INTEGER NOT NULL DEFAULT 0, since REAL,
             PRIMARY KEY(grp, id)) WITHOUT ROWID""",
        "CREATE INDEX mq_side_ready ON mq_side(grp, priority DESC, id) WHERE state = 0",
        "CREATE INDEX mq_side_due ON mq_side(grp, due) WHERE state = 1",
        "CREATE INDEX mq_side_key ON mq_side(grp, key, id) WHERE key IS NOT NULL",
        """CREATE TABLE mq_keylock(grp INTEGER NOT NULL, key TEXT NOT NULL, owner INTEGER, held INTEGER NOT NULL,
             PRIMARY KEY(grp, key)) WITHOUT ROWID""",
        "CREATE INDEX mq_keylock_free ON mq_keylock(grp, key) WHERE held = 0 AND owner IS NOT NULL",
    ),
    2: (
        "ALTER TABLE mq_owner ADD COLUMN started INTEGER",
        "ALTER TABLE mq_owner ADD COLUMN namespace TEXT",
    ),
}


def version(db: sqlite3.Connection | sqlite3.Cursor) -> int:
    """Of the tables in the file; 0 when there are none."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'mq_meta'").fetchone():
        return 0
    row = db.execute("SELECT value FROM mq_meta WHERE name = 'schema'").fetchone()
    return int(row[0]) if row else 0


def migrate(db: sqlite3.Connection, path: str) -> bool:
    """Bring the tables to this version, inside the caller's transaction; whether anything changed."""
    found = version(db)
    if found > VERSION:
        raise StoreDamaged(
            f"SQLite file {path} was written by a newer mqkit (format {found}, this one knows {VERSION}); "
            "upgrade mqkit here or use another file"
        )
    for step in range(found + 1, VERSION + 1):
        for statement in STEPS[step]:
            db.execute(statement)
    if found < VERSION:
        db.execute("INSERT OR REPLACE INTO mq_meta VALUES ('schema', ?)", (VERSION,))
    return found < VERSION
