"""Topics and their groups, retention, replay, and broadcasts."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_station import QUEUE, Station, done, ids, take, take_now, until

from mqkit.backends.base import Address, Release
from mqkit.errors import TopologyMismatch
from mqkit.native import SqliteTopic

TOPIC = Address("topic", "events")
BILLING, AUDIT = TOPIC._replace(group="billing"), TOPIC._replace(group="audit")
TICKS = Address("broadcast", "ticks")


def rows(path: Path) -> int:
    db = sqlite3.connect(path)
    [(count,)] = db.execute("SELECT (SELECT count(*) FROM mq_message) + (SELECT count(*) FROM mq_later)").fetchall()
    db.close()
    return int(count)


def test_every_group_gets_every_message(station: Station) -> None:
    billing, audit = station.receiver(BILLING), station.receiver(AUDIT)
    station.publish(TOPIC, "a", "b")

    assert ids(take(billing, 2)) == ["a", "b"]
    assert ids(take(audit, 2)) == ["a", "b"]


def test_a_group_keeps_messages_from_its_declaration_on(station: Station) -> None:
    station.declare(BILLING)
    station.publish(TOPIC, "before")
    station.declare(AUDIT)
    station.publish(TOPIC, "after")

    assert ids(take(station.receiver(BILLING), 2)) == ["before", "after"]
    assert ids(take_now(station.receiver(AUDIT))) == ["after"]


def test_a_topic_without_groups_stores_nothing(station: Station, path: Path) -> None:
    station.declare(TOPIC)

    station.publish(TOPIC, "a", "b")

    assert rows(path) == 0


def test_what_every_group_has_settled_leaves_the_file(station: Station, path: Path) -> None:
    billing, audit = station.receiver(BILLING), station.receiver(AUDIT)
    station.publish(TOPIC, *(f"m{number}" for number in range(500)))
    done(billing, take(billing, 500))
    assert rows(path) == 500
    got = take(audit, 500)
    audit.settle([Release(got[7], after=0.1, attempt=2)])
    done(audit, [each for each in got if each is not got[7]])
    assert rows(path) < 500

    done(audit, take(audit, 1))

    assert rows(path) == 0
    assert (station.depth(BILLING), station.depth(AUDIT)) == ((0, 0, 0), (0, 0, 0))


def test_a_retaining_topic_replays_to_a_new_group(station: Station) -> None:
    station.declare(TOPIC, native=SqliteTopic(retain=60.0))
    station.publish(TOPIC, "a", "b")

    late = station.receiver(AUDIT, start="earliest")
    fresh = station.receiver(BILLING)
    station.publish(TOPIC, "c")

    assert ids(take(late, 3)) == ["a", "b", "c"]
    assert ids(take_now(fresh)) == ["c"]


def test_retention_ends(station: Station, path: Path) -> None:
    station.declare(TOPIC, native=SqliteTopic(retain=60.0))
    station.publish(TOPIC, "a", "b")
    station.pass_time(61.0)

    station.publish(TOPIC, "c")

    assert rows(path) == 1
    assert ids(take(station.receiver(AUDIT, start="earliest"), 1)) == ["c"]


def test_earliest_reaches_what_is_still_there_for_others(station: Station) -> None:
    station.declare(BILLING)
    station.publish(TOPIC, "a", "b")

    late = station.receiver(AUDIT, start="earliest")

    assert station.depth(AUDIT) == (2, 0, 0)
    assert ids(take(late, 2)) == ["a", "b"]


def test_a_message_to_one_group_reaches_only_it(station: Station) -> None:
    billing, audit = station.receiver(BILLING), station.receiver(AUDIT)
    station.publish(BILLING, "mine")
    station.publish(TOPIC, "all")

    assert ids(take(billing, 2)) == ["mine", "all"]
    assert ids(take_now(audit)) == ["all"]
    assert station.depth(AUDIT) == (0, 1, 0)


def test_a_delayed_message_reaches_the_groups_of_its_due_time(station: Station) -> None:
    station.declare(BILLING)
    station.publish(TOPIC, "a", delay=60.0)

    audit = station.receiver(AUDIT)
    station.pass_time(60.0)

    assert ids(take(audit, 1)) == ["a"]
    late = TOPIC._replace(group="late")
    assert take_now(station.receiver(late)) == []


def test_retention_is_fixed_when_the_topic_is_declared(station: Station) -> None:
    station.declare(TOPIC, native=SqliteTopic(retain=60.0))

    with pytest.raises(TopologyMismatch, match="retain=60"):
        station.declare(TOPIC, native=SqliteTopic(retain=5.0))


def test_dead_letters_of_a_group_are_a_queue_of_their_own(station: Station) -> None:
    station.declare(BILLING)
    station.publish(BILLING.dead_letters, "corpse")

    assert station.depth(BILLING.dead_letters) == (1, 0, 0)
    assert ids(take(station.receiver(BILLING.dead_letters), 1)) == ["corpse"]


def test_a_broadcast_reaches_everybody_who_listens_now(station: Station) -> None:
    station.declare(TICKS)
    station.publish(TICKS, "missed")
    first, second = station.receiver(TICKS), station.receiver(TICKS)

    station.publish(TICKS, "a", "b")

    assert ids(take(first, 2)) == ["a", "b"]
    assert ids(take(second, 2)) == ["a", "b"]


def test_a_broadcast_stores_nothing_while_nobody_listens(station: Station, path: Path) -> None:
    listener = station.receiver(TICKS)
    station.publish(TICKS, "a")
    assert rows(path) == 1
    listener.close()
    assert rows(path) == 0

    station.publish(TICKS, "b")

    assert rows(path) == 0


def test_a_listener_that_died_is_forgotten_by_who_publishes(open_station: Callable[..., Station], path: Path) -> None:
    station = open_station(lease=5.0)
    station.receiver(TICKS)
    station.pass_time(6.0)

    station.publish(TICKS, "a")
    station.pass_time(2.0)  # listeners are looked after once a second
    station.publish(TICKS, "b")

    assert rows(path) == 0


def test_a_publish_wakes_a_listener(station: Station) -> None:
    listener = station.receiver(TICKS)
    got: list[str] = []
    thread = threading.Thread(target=lambda: got.extend(ids(listener.receive(10, 20.0).deliveries)))
    thread.start()
    until(station.blocked_receives)

    station.publish(TICKS, "a")
    thread.join(5.0)

    assert got == ["a"]


def test_queue_and_topic_of_one_name_never_meet(station: Station) -> None:
    station.declare(Address("topic", "emails", "x"))
    station.declare(QUEUE)
    station.publish(QUEUE, "a")

    assert take_now(station.receiver(Address("topic", "emails", "x"))) == []
