"""Files that earlier versions of mqkit wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_station import KEYED, QUEUE, Station, ids, take

from mqkit.backends.sqlite.schema import STEPS, VERSION

ORDERED = {"keyed": True, "order": "key"}


def write_as_version(path: Path, number: int) -> None:
    """Tables of an earlier version, with a queue in use: one message in the hands of a process that is gone, one waiting."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    for step in range(1, number + 1):
        for statement in STEPS[step]:
            db.execute(statement)
    first = (1 << 40) + 1
    for name, values in (
        ("mq_meta", ("schema", number)),
        ("mq_destination", (1, "queue/orders", "queue", 1, 0, 0.0, 1, first + 1, 2, 1 << 40)),
        ("mq_group", (1, 1, "", 1, first, 0, 0)),
        ("mq_destination", (2, "dead/queue/orders", "queue", 0, 0, 0.0, 1, 2 << 40, 0, 2 << 40)),
        ("mq_group", (2, 2, "", 0, 2 << 40, 0, 0)),
        ("mq_message", (first, None, 0, 1.0, None, "a", "a1", b"[{},{}]", b"one")),
        ("mq_message", (first + 1, None, 0, 1.0, None, "a", "a2", b"[{},{}]", b"two")),
        ("mq_owner", (1, 1, 9e9, "another boot", 1)),
        ("mq_lease", (1, first, "a", None, None, 0, 0, None, 0)),
        ("mq_keylock", (1, "a", 1, 1)),
    ):
        db.execute(f"INSERT INTO {name} VALUES ({','.join('?' * len(values))})", values)
    db.close()


@pytest.mark.parametrize("number", range(1, VERSION))
def test_a_file_of_an_earlier_version_is_brought_up_with_what_it_holds(
    path: Path, open_station: Callable[..., Station], number: int
) -> None:
    write_as_version(path, number)

    station = open_station()

    receiver = station.receiver(KEYED, **ORDERED)
    got = take(receiver, 2)
    assert [(each.id, each.body, each.lost) for each in got] == [("a1", b"one", 1), ("a2", b"two", 0)]
    station.declare(QUEUE)
    station.publish(QUEUE, "new")
    assert ids(take(station.receiver(QUEUE), 1)) == ["new"]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT value FROM mq_meta WHERE name = 'schema'").fetchone() == (VERSION,)
    db.close()
