"""Order per key: one owner at a time, parked behind a failed one, handed on in order."""

from __future__ import annotations

from typing import Any

import pytest
from sqlite_station import KEYED, Station, done, ids, message, take, take_now

from mqkit.backends.base import Address, Declaration, Done, Release
from mqkit.errors import ConfigError, TopologyMismatch

ORDERED: dict[str, Any] = {"keyed": True, "order": "key"}


def publish(station: Station, *names: str) -> None:
    """`a1` has key `a`."""
    assert not any(station.outcomes(*(message(KEYED, name, key=name[0]) for name in names)).values())


def test_a_key_belongs_to_one_receiver_at_a_time(station: Station) -> None:
    first, second = station.receiver(KEYED, **ORDERED), station.receiver(KEYED, **ORDERED)
    publish(station, "a1", "b1", "a2", "b2", "c1")

    one = take(first, 1)
    two = take_now(second)

    assert ids(one) == ["a1"]
    assert ids(two) == ["b1", "b2", "c1"]
    done(first, one)
    assert ids(take(second, 1)) == ["a2"]


def test_messages_without_a_key_have_no_order(station: Station) -> None:
    first, second = station.receiver(KEYED, **ORDERED), station.receiver(KEYED, **ORDERED)
    station.publish(KEYED, "x", "y")

    assert ids(take(first, 1)) + ids(take(second, 1)) == ["x", "y"]


def test_nobody_passes_a_failed_message_of_its_key(station: Station) -> None:
    first, second = station.receiver(KEYED, **ORDERED), station.receiver(KEYED, **ORDERED)
    publish(station, "a1", "a2", "b1", "a3")
    a1, a2 = take(first, 2)

    first.settle([Release(a1, after=60.0, attempt=2, since=1.0), Release(a2)])
    first.flush(5.0)

    assert ids(take(second, 1)) == ["b1"]
    station.pass_time(60.0)
    again = take(second, 3)
    assert [(each.id, each.attempt) for each in again] == [("a1", 2), ("a2", 1), ("a3", 1)]


def test_followers_released_first_still_stand_behind_their_head(station: Station) -> None:
    receiver = station.receiver(KEYED, **ORDERED)
    publish(station, "a1", "a2", "a3")
    a1, a2, a3 = take(receiver, 3)

    receiver.settle([Release(a3), Release(a2, after=60.0, attempt=2)])
    receiver.flush(5.0)
    station.pass_time(61.0)
    assert take_now(receiver) == []
    done(receiver, [a1])

    assert ids(take(receiver, 2)) == ["a2", "a3"]


def test_a_settled_head_lets_its_retried_follower_wait(station: Station) -> None:
    receiver = station.receiver(KEYED, **ORDERED)
    publish(station, "a1", "a2", "a3")
    a1, a2, a3 = take(receiver, 3)
    start = receiver.now()

    receiver.settle([Done(a1), Release(a2, after=0.2, attempt=2), Release(a3)])

    assert ids(take(receiver, 2)) == ["a2", "a3"]
    assert receiver.now() - start >= 0.2


def test_closing_keeps_the_place_of_a_key(station: Station) -> None:
    first = station.receiver(KEYED, **ORDERED)
    publish(station, "a1", "a2", "b1")
    take(first, 2)
    second = station.receiver(KEYED, **ORDERED)
    publish(station, "a3")
    assert ids(take_now(second)) == ["b1"]

    first.close()

    assert ids(take(second, 3)) == ["a1", "a2", "a3"]


def test_a_long_run_behind_a_head_keeps_its_order(station: Station) -> None:
    first, second = station.receiver(KEYED, **ORDERED), station.receiver(KEYED, **ORDERED)
    names = [f"a{number}" for number in range(150)]
    publish(station, *names)
    held = take(first, 1)
    assert take_now(second) == []
    done(first, held)

    got: list[str] = []
    while len(got) < 149:
        some = second.receive(100, 5.0).deliveries
        got += ids(some)
        done(second, some)

    assert got == names[1:]


def test_a_key_is_found_behind_thousands_of_a_locked_one(station: Station) -> None:
    first, second = station.receiver(KEYED, **ORDERED), station.receiver(KEYED, **ORDERED)
    publish(station, *(f"a{number}" for number in range(3500)), "b0")
    take(first, 1)

    assert ids(second.receive(1, 5.0).deliveries) == ["b0"]


def test_a_delayed_message_takes_its_place_when_it_is_due(station: Station) -> None:
    receiver = station.receiver(KEYED, **ORDERED)
    station.publish(KEYED, "late", key="a", delay=60.0)
    publish(station, "a1")
    station.pass_time(60.0)

    assert ids(take(receiver, 2)) == ["a1", "late"]


def test_order_is_fixed_when_the_queue_is_declared(station: Station) -> None:
    station.declare(KEYED, **ORDERED)

    with pytest.raises(TopologyMismatch, match=r"order='key'.*order='none'"):
        station.declare(KEYED, keyed=True, order="none")
    with pytest.raises(TopologyMismatch, match="order"):
        station.backend.receiver(Declaration(KEYED, keyed=True), 1)


def test_a_keyed_queue_may_be_declared_without_order(station: Station) -> None:
    receiver = station.receiver(KEYED, keyed=True)
    other = station.receiver(KEYED, keyed=True)
    publish(station, "a1", "a2")

    assert ids(take(receiver, 1)) + ids(take(other, 1)) == ["a1", "a2"]


def test_priorities_and_order_do_not_go_together(station: Station) -> None:
    with pytest.raises(ConfigError, match="priorities"):
        station.declare(Address("queue", "both"), keyed=True, order="key", priorities=3)


def test_groups_of_a_topic_lock_keys_on_their_own(station: Station) -> None:
    topic = Address("topic", "events")
    one = station.receiver(topic._replace(group="one"), **ORDERED)
    two = station.receiver(topic._replace(group="two"), **ORDERED)
    assert not any(station.outcomes(*(message(topic, f"a{number}", key="a") for number in range(3))).values())

    held = take(one, 3)
    one.settle([Release(each, after=0.05 if each is held[0] else 0.0) for each in held])
    one.flush(5.0)

    assert ids(take(two, 3)) == ["a0", "a1", "a2"]
    assert ids(take(one, 3)) == ["a0", "a1", "a2"]


def test_depth_counts_parked_messages_as_ready(station: Station) -> None:
    first, second = station.receiver(KEYED, **ORDERED), station.receiver(KEYED, **ORDERED)
    publish(station, "a1", "a2", "a3")
    take(first, 1)
    assert take_now(second) == []

    assert station.depth(KEYED) == (2, 1, 0)
