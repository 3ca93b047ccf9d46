"""What goes wrong in a transaction reaches those it concerns, nobody else, and ends when its cause does."""

from __future__ import annotations

import math
import multiprocessing
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlite_programs
from sqlite_station import QUEUE, Station, ids, message, take, until

from mqkit.backends.base import Address, Done, Release
from mqkit.backends.sqlite.errors import translate
from mqkit.errors import ConfigError, MqkitError, PublishFailed, PublishUnknown, StoreDamaged, Unencodable

SPAWN = multiprocessing.get_context("spawn")
UNSTORABLE = "\ud800"  # SQLite's driver cannot encode it


@contextmanager
def locked_by_somebody(path: Path) -> Iterator[None]:
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        foreign.execute("ROLLBACK")
        foreign.close()


def test_what_cannot_be_stored_fails_and_the_next_publish_works(station: Station) -> None:
    station.declare(QUEUE)

    outcomes = station.outcomes(message(QUEUE, "bad", key=UNSTORABLE))

    assert isinstance(outcomes["bad"], Unencodable)
    station.publish(QUEUE, "good")
    assert station.depth(QUEUE) == (1, 0, 0)


def test_what_cannot_be_stored_does_not_fail_what_shares_its_transaction(station: Station, path: Path) -> None:
    station.declare(QUEUE)
    other = station.backend.publisher()

    with locked_by_somebody(path):
        station.publisher.submit([message(QUEUE, "a")])
        other.submit([message(QUEUE, "bad", key=UNSTORABLE)])
        station.publisher.submit([message(QUEUE, "b")])
    found: dict[str, MqkitError | None] = {}
    until(lambda: found.update(station.publisher.collect(1.0)) or len(found) == 2)
    [(_, failure)] = other.collect(10.0)
    other.close()

    assert found == {"a": None, "b": None}
    assert isinstance(failure, Unencodable)
    assert ids(take(station.receiver(QUEUE), 2)) == ["a", "b"]


def test_a_settlement_that_cannot_be_stored_fails_alone(station: Station, path: Path) -> None:
    receiver, other = station.receiver(QUEUE), station.receiver(Address("queue", "others"))
    station.publish(QUEUE, "a")
    station.publish(Address("queue", "others"), "b")
    held, theirs = take(receiver, 1), take(other, 1)
    errors: list[MqkitError] = []

    def release_for_ever() -> None:
        receiver.settle([Release(held[0], after=math.inf)])
        try:
            receiver.flush(20.0)
        except MqkitError as exc:
            errors.append(exc)

    with locked_by_somebody(path):
        thread = threading.Thread(target=release_for_ever)
        thread.start()
        other.settle([Done(theirs[0])])
    assert not other.flush(20.0).refused
    thread.join(20.0)

    assert [type(error) for error in errors] == [Unencodable]
    assert station.depth(Address("queue", "others")) == (0, 0, 0)
    assert station.depth(QUEUE) == (0, 1, 0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("malformed JSON", Unencodable), ("no such table: mq_message", StoreDamaged), ("no such column: x", StoreDamaged)],
)
def test_a_refused_statement_is_no_damage_unless_tables_are_missing(text: str, kind: type[MqkitError]) -> None:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = sqlite3.SQLITE_ERROR

    assert type(translate(error, "/some/app.db")) is kind


def test_a_foreign_lock_is_said_by_the_publisher_until_it_is_gone(
    open_station: Callable[..., Station], path: Path
) -> None:
    station = open_station(busy=0.1)
    station.publish(*(station.declare(QUEUE).address, "before"))
    assert station.publisher.blocked is None

    with locked_by_somebody(path):
        assert isinstance(station.outcomes(message(QUEUE, "a"))["a"], PublishFailed)
        assert "locked by another program" in (station.publisher.blocked or "")

    until(lambda: station.publisher.blocked is None)  # though nobody publishes


def test_a_missing_file_is_said_by_the_publisher_until_it_is_back(station: Station, path: Path) -> None:
    station.declare(QUEUE)
    path.rename(path.with_suffix(".old"))
    until(lambda: "deleted or renamed" in (station.publisher.blocked or ""))
    assert isinstance(station.outcomes(message(QUEUE, "a"))["a"], StoreDamaged)

    path.with_suffix(".old").rename(path)

    until(lambda: station.publisher.blocked is None)
    station.publish(QUEUE, "b")


def test_damage_that_a_consumer_finds_stops_the_publishers_of_its_process(
    open_station: Callable[..., Station], path: Path
) -> None:
    station = open_station()
    station.declare(QUEUE)
    station.publish(QUEUE, *(f"m{number}" for number in range(200)), body=b"x" * 3000)
    station.close()
    with path.open("r+b") as file:  # nobody uses it now
        file.seek(4096 * 30)
        file.write(b"\xff" * 4096 * 60)
    station = open_station()

    with pytest.raises(StoreDamaged, match="is corrupt"):
        take(station.receiver(QUEUE), 200)

    assert isinstance(station.outcomes(message(QUEUE, "a"))["a"], StoreDamaged)
    assert "is corrupt" in (station.publisher.blocked or "")


def test_an_abandoned_publish_that_has_not_begun_is_certainly_not_sent(
    open_station: Callable[..., Station], path: Path
) -> None:
    station = open_station(busy=60.0)
    station.declare(QUEUE)

    with locked_by_somebody(path):
        station.publisher.submit([message(QUEUE, "a"), message(QUEUE, "b")])
        outcomes = dict(station.publisher.abandon())

    assert {id: type(error) for id, error in outcomes.items()} == {"a": PublishFailed, "b": PublishFailed}
    assert not any(isinstance(error, PublishUnknown) for error in outcomes.values())
    station.publish(QUEUE, "c")
    assert ids(station.admin.browse(QUEUE, limit=10)) == ["c"]


def test_a_burst_stops_at_the_reserve(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system can only be mounted by root: {mounted.stderr.decode().strip()}")
    try:
        reserve = 20 << 20
        station = Station(tmp_path / "app.db", reserve=reserve)
        receiver = station.receiver(QUEUE)
        names = [f"m{number:02}" for number in range(80)]

        outcomes = station.outcomes(*(message(QUEUE, name, body=b"x" * (1 << 20)) for name in names))

        accepted = [name for name in names if outcomes[name] is None]
        assert accepted == names[: len(accepted)]
        assert 10 <= len(accepted) < 40
        assert all("reserve" in str(outcomes[name]) for name in names[len(accepted) :])
        disk = os.statvfs(tmp_path)
        assert disk.f_bavail * disk.f_frsize >= reserve
        assert "reserve" in (station.publisher.blocked or "")
        assert ids(take(receiver, len(accepted))) == accepted
        station.close()
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_too_few_descriptors_are_unavailable_and_leak_nothing(path: Path) -> None:
    answers = SPAWN.Queue()
    program = SPAWN.Process(target=sqlite_programs.open_with_few_descriptors, args=(str(path), answers))
    program.start()
    kinds, left_open = answers.get(timeout=60.0)
    program.join()

    assert set(kinds) == {"Unavailable", "opened"}
    assert left_open == 0


@pytest.mark.parametrize("option", ["busy=nan", "busy=inf", "busy=1e12", "lease=nan", "lease=inf"])
def test_options_that_are_no_number_of_seconds_are_refused(path: Path, option: str) -> None:
    name, _, value = option.partition("=")

    with pytest.raises(ConfigError, match=name):
        Station(path, **{name: value})


def test_a_path_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NUL"):
        Station(f"{tmp_path}/a%00b.db")
