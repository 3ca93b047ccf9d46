"""
The same guarantees in plain `sqlite3`, as little as it takes: a log of messages, one cursor, and leases for those in hand.

Two tables and a row instead of the backend's schema, no keys, delays, priorities, retries or several groups: what is left is
the price of the file itself, which nobody who wants durable messages can avoid.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.folder import folder
from benchmarks.sample import LARGE, Sample, Stopwatch

MESSAGES = 30_000
AT_ONCE = 1000  # most messages of one publishing transaction, as in the backend
BATCH = 100  # messages claimed and settled at once
AHEAD = 10_000  # messages the producer may be ahead of the disk, as in a bus

TOGETHER = 100  # rows inserted by one statement
INSERT = "INSERT INTO log(message_id, envelope, body)"
Row = tuple[str, bytes, bytes]

encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(dict[str, str]).decode

TABLES = (
    "CREATE TABLE log(id INTEGER PRIMARY KEY, message_id TEXT NOT NULL, envelope BLOB NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE lease(id INTEGER PRIMARY KEY, owner INTEGER NOT NULL, until REAL NOT NULL)",
    "CREATE TABLE cursor(id INTEGER NOT NULL)",
    "INSERT INTO cursor VALUES (0)",
)


def publish() -> Sample:
    """Group commit: a producer encodes and queues, a thread writes whatever has queued up in one transaction."""
    with _log() as path:
        watch = Stopwatch()
        _fill(path, MESSAGES)
        return watch.sample(MESSAGES)


def publish_one_by_one() -> Sample:
    """A transaction for each message: shows what one wait for this disk costs."""
    count = MESSAGES // 20
    with _log() as path, closing(_connect(path)) as db:
        watch = Stopwatch()
        for number in range(count):
            db.execute("BEGIN IMMEDIATE")
            db.execute(f"{INSERT} VALUES (?, ?, ?)", _row(number))
            db.execute("COMMIT")
        return watch.sample(count)


def consume() -> Sample:
    return _consume(BATCH)


def consume_by_1000() -> Sample:
    """As many at once as a fast consumer of mqkit takes: the same number of waits for the disk."""
    return _consume(AT_ONCE)


def _consume(batch: int) -> Sample:
    """Settle the last batch and claim the next in one transaction, then decode and handle."""
    with _log() as path:
        _fill(path, MESSAGES)
        with closing(_connect(path)) as db:
            watch = Stopwatch()
            handled = 0
            for bodies in _batches(db, batch):
                for body in bodies:
                    _handle(decode(body))
                    handled += 1
            if handled != MESSAGES:
                raise ValueError(f"{handled} of {MESSAGES} messages were handled")
            return watch.sample(handled)


def _batches(db: sqlite3.Connection, batch: int) -> Iterator[list[bytes]]:
    cursor, first = 0, 1
    while True:
        db.execute("BEGIN IMMEDIATE")
        db.execute(
            "DELETE FROM log WHERE id IN (SELECT id FROM lease WHERE owner = 1 AND id BETWEEN ? AND ?)", (first, cursor)
        )
        db.execute("DELETE FROM lease WHERE owner = 1 AND id BETWEEN ? AND ?", (first, cursor))
        rows = db.execute(
            "SELECT id, message_id, envelope, body FROM log WHERE id > ? ORDER BY id LIMIT ?", (cursor, batch)
        ).fetchall()
        if rows:
            first, cursor = rows[0][0], rows[-1][0]
            db.execute("INSERT INTO lease SELECT id, 1, 0.0 FROM log WHERE id BETWEEN ? AND ?", (first, cursor))
            db.execute("UPDATE cursor SET id = ?", (cursor,))
        db.execute("COMMIT")
        if not rows:
            return
        yield [row[3] for row in rows]


def _handle(payload: dict[str, str]) -> None: ...


def _fill(path: Path, count: int) -> None:
    waiting: deque[Row] = deque()
    arrived, room = threading.Event(), threading.Semaphore(AHEAD)

    def write() -> None:
        written = 0
        with closing(_connect(path)) as db:
            while written < count:
                arrived.wait()
                arrived.clear()
                while waiting:
                    rows = [waiting.popleft() for _ in range(min(len(waiting), AT_ONCE))]
                    db.execute("BEGIN IMMEDIATE")
                    _insert(db, rows)
                    db.execute("COMMIT")
                    written += len(rows)
                    room.release(len(rows))

    writer = threading.Thread(target=write)
    writer.start()
    for number in range(count):
        room.acquire()
        waiting.append(_row(number))
        arrived.set()
    writer.join()


def _insert(db: sqlite3.Connection, rows: list[Row]) -> None:
    """A hundred rows to a statement: row by row, sqlite3 gives up the interpreter each time and the producer delays it."""
    whole = len(rows) - len(rows) % TOGETHER
    for first in range(0, whole, TOGETHER):
        values = [value for row in rows[first : first + TOGETHER] for value in row]
        db.execute(f"{INSERT} VALUES {','.join(['(?, ?, ?)'] * TOGETHER)}", values)
    db.executemany(f"{INSERT} VALUES (?, ?, ?)", rows[whole:])


def _row(number: int) -> Row:
    return f"{number:032x}", b'[{"content_type":"application/json"},{}]', encode(LARGE)


@contextmanager
def _log() -> Iterator[Path]:
    with folder() as here:
        path = here / "raw.db"
        with closing(_connect(path)) as db:
            for statement in TABLES:
                db.execute(statement)
        yield path


def _connect(path: Path) -> sqlite3.Connection:
    db: Any = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA cache_size = -16384")
    return db  # type: ignore[no-any-return]
