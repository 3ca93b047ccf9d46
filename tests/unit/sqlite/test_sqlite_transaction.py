"""Publishing inside a transaction of the user's own."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_station import QUEUE, Station, ids, message, take, take_now

from mqkit import Bus, Queue
from mqkit.backends.base import Address
from mqkit.errors import CapabilityMissing, ConfigError, NotFound
from mqkit.native import SqliteTransaction


@pytest.fixture
def db(station: Station, path: Path) -> Iterator[sqlite3.Connection]:
    station.declare(QUEUE)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE accounts(name TEXT)")
    yield db
    db.close()


def test_a_message_becomes_visible_with_the_users_commit(station: Station, db: sqlite3.Connection) -> None:
    receiver = station.receiver(QUEUE)
    db.row_factory = sqlite3.Row
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO accounts VALUES ('a')")
    station.backend.publish_within(SqliteTransaction(db), [message(QUEUE, "a"), message(QUEUE, "b", delay=0.1)])
    assert station.depth(QUEUE) == (0, 0, 0)

    db.execute("COMMIT")

    assert ids(take(receiver, 2)) == ["a", "b"]


def test_a_rolled_back_message_was_never_published(station: Station, db: sqlite3.Connection) -> None:
    receiver = station.receiver(QUEUE)
    db.execute("BEGIN IMMEDIATE")
    station.backend.publish_within(SqliteTransaction(db), [message(QUEUE, "a")])
    db.execute("ROLLBACK")
    station.publish(QUEUE, "b")

    assert ids(take_now(receiver)) == ["b"]


def test_a_connection_outside_a_transaction_is_refused(station: Station, db: sqlite3.Connection) -> None:
    with pytest.raises(ConfigError, match="BEGIN IMMEDIATE"):
        station.backend.publish_within(SqliteTransaction(db), [message(QUEUE, "a")])


def test_a_connection_to_another_file_is_refused(station: Station, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "other.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(ConfigError, match="not to SQLite file"):
        station.backend.publish_within(SqliteTransaction(other), [message(QUEUE, "a")])
    other.close()


def test_an_outdated_transaction_is_told_how_to_begin(station: Station, db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    db.execute("SELECT * FROM accounts").fetchall()
    station.publish(QUEUE, "meanwhile")

    with pytest.raises(ConfigError, match="BEGIN IMMEDIATE"):
        station.backend.publish_within(SqliteTransaction(db), [message(QUEUE, "a")])


def test_an_unknown_destination_writes_nothing(station: Station, db: sqlite3.Connection) -> None:
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotFound):
        station.backend.publish_within(
            SqliteTransaction(db), [message(QUEUE, "a"), message(Address("queue", "nowhere"), "b")]
        )
    db.execute("COMMIT")

    assert station.depth(QUEUE) == (0, 0, 0)


def test_something_else_than_a_transaction_is_refused(station: Station) -> None:
    with pytest.raises(CapabilityMissing, match="SqliteTransaction"):
        station.backend.publish_within(object(), [message(QUEUE, "a")])


def open_transaction(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE IF NOT EXISTS accounts(name TEXT)")
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO accounts VALUES ('a')")
    return db


def test_a_bus_that_is_not_open_publishes_within_a_transaction_that_holds_the_file(path: Path) -> None:
    emails = Queue("emails", str)
    bus = Bus(f"sqlite:///{path}")
    bus.declare(emails)
    bus.close()

    db = open_transaction(path)
    bus = Bus(f"sqlite:///{path}?busy=60")  # waiting for the lock would take longer than the test may
    bus.publish(emails, "Hello", native=SqliteTransaction(db))
    db.execute("COMMIT")
    db.close()

    with bus.subscription(emails) as messages:
        assert messages.receive(max=2, timeout=20.0)[0].payload == "Hello"
    bus.close()


@pytest.mark.parametrize("prepared", [False, True])
def test_what_a_transaction_keeps_from_being_created_is_refused_at_once(path: Path, prepared: bool) -> None:
    if prepared:
        with Bus(f"sqlite:///{path}") as earlier:
            earlier.declare(Queue("another", str))
    db, bus = open_transaction(path), Bus(f"sqlite:///{path}?busy=60")

    with pytest.raises(ConfigError, match=r"declare.* before"):
        bus.publish(Queue("emails", str), "Hello", native=SqliteTransaction(db))

    assert db.in_transaction
    db.close()
    bus.close()
