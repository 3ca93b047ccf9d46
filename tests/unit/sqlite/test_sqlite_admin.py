"""Declaring, browsing, replacing, purging, deleting."""

from __future__ import annotations

import pytest
from sqlite_station import KEYED, QUEUE, Station, done, ids, message, take, take_now

from mqkit.backends.base import Address, Declaration, Release
from mqkit.errors import NotFound, TopologyMismatch

TOPIC = Address("topic", "events")
BILLING, AUDIT = TOPIC._replace(group="billing"), TOPIC._replace(group="audit")


def test_a_queue_brings_its_dead_letters_along(station: Station) -> None:
    station.declare(QUEUE)
    station.declare(QUEUE)

    assert [each.address for each in station.admin.describe()] == [QUEUE, QUEUE.dead_letters]


def test_check_creates_nothing(station: Station) -> None:
    with pytest.raises(NotFound, match="emails"):
        station.admin.check([Declaration(QUEUE)])

    assert station.admin.describe() == []


def test_a_differing_option_is_named(station: Station) -> None:
    station.declare(QUEUE, priorities=3)

    with pytest.raises(TopologyMismatch, match=r"priorities=3.*priorities=4"):
        station.admin.check([Declaration(QUEUE, priorities=4)])


def test_a_topic_without_groups_is_described(station: Station) -> None:
    station.declare(TOPIC)
    station.publish(TOPIC, "a", delay=60.0)

    assert station.depth(TOPIC) == (0, 0, 1)


def test_depth_follows_a_message_through_its_life(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b", "c")
    assert station.depth(QUEUE) == (3, 0, 0)
    a, b, c = take(receiver, 3)
    assert station.depth(QUEUE) == (0, 3, 0)
    receiver.settle([Release(a, after=60.0, attempt=2), Release(b)])
    receiver.flush(5.0)
    assert station.depth(QUEUE) == (1, 1, 1)
    done(receiver, [c])
    assert station.depth(QUEUE) == (1, 0, 1)


def test_browsing_shows_what_waits_without_taking_it(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, *(f"m{number}" for number in range(6)))
    station.publish(QUEUE, "later", delay=60.0)
    first, second = take(receiver, 2)
    receiver.settle([Release(first, after=60.0, attempt=2)])
    receiver.flush(5.0)

    page = station.admin.browse(QUEUE, limit=3)
    rest = station.admin.browse(QUEUE, limit=10, after=page[-1].id)

    assert [(each.id, each.attempt, each.deliveries) for each in page] == [("m0", 2, 1), ("m2", 1, 0), ("m3", 1, 0)]
    assert ids(rest) == ["m4", "m5", "later"]
    assert station.admin.browse(QUEUE, limit=10, after="later") == []
    assert ids([second]) == ["m1"]
    assert station.depth(QUEUE) == (4, 1, 2)


def test_browsing_goes_on_after_a_message_that_was_removed_meanwhile(station: Station) -> None:
    station.declare(QUEUE)
    station.publish(QUEUE, "a", "b", "c")
    [first] = station.admin.browse(QUEUE, limit=1)
    station.admin.replace(QUEUE, {"a": ()})

    assert ids(station.admin.browse(QUEUE, limit=10, after=first.id)) == ["b", "c"]


def test_browsing_an_unknown_queue_says_so(station: Station) -> None:
    with pytest.raises(NotFound):
        station.admin.browse(QUEUE, limit=1)


def test_replacing_moves_dead_letters_back(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE.dead_letters, "a", "b")

    removed = station.admin.replace(QUEUE.dead_letters, {"a": [message(QUEUE, "a")], "gone": [message(QUEUE, "never")]})

    assert removed == 1
    assert ids(take_now(receiver)) == ["a"]
    assert ids(station.admin.browse(QUEUE.dead_letters, limit=10)) == ["b"]


def test_a_replacement_that_cannot_be_published_removes_nothing(station: Station) -> None:
    station.declare(QUEUE)
    station.publish(QUEUE, "a", "b")

    with pytest.raises(NotFound):
        station.admin.replace(QUEUE, {"a": (), "b": [message(Address("queue", "nowhere"), "x")]})

    assert station.depth(QUEUE) == (2, 0, 0)


@pytest.mark.parametrize("order", ["none", "key"])
def test_removing_from_one_group_leaves_the_others_alone(station: Station, order: str) -> None:
    billing = station.receiver(BILLING, keyed=True, order=order)
    audit = station.receiver(AUDIT, keyed=True, order=order)
    for number in range(5):
        station.publish(TOPIC, f"m{number}", key=str(number % 2))

    assert station.admin.replace(BILLING, {"m1": (), "m3": ()}) == 2

    assert station.depth(BILLING) == (3, 0, 0)
    assert sorted(ids(take(billing, 3))) == ["m0", "m2", "m4"]
    assert ids(take(audit, 5)) == ["m0", "m1", "m2", "m3", "m4"]


def test_purging_leaves_what_is_in_hand(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, *(f"m{number}" for number in range(10)))
    station.publish(QUEUE, "later", delay=60.0)
    held = take(receiver, 3)

    assert station.admin.purge(QUEUE) == 8
    assert station.admin.purge(QUEUE) == 0

    assert station.depth(QUEUE) == (0, 3, 0)
    done(receiver, held)


def test_purging_frees_the_keys_of_parked_messages(station: Station) -> None:
    receiver = station.receiver(KEYED, keyed=True, order="key")
    station.publish(KEYED, "a1", "a2", key="a")
    one, two = take(receiver, 2)
    receiver.settle([Release(one, after=60.0, attempt=2), Release(two)])
    receiver.flush(5.0)

    assert station.admin.purge(KEYED) == 2
    station.publish(KEYED, "a3", key="a")

    assert ids(take(receiver, 1)) == ["a3"]


def test_a_deleted_queue_is_gone_with_its_dead_letters(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b")
    take(receiver, 1)

    station.admin.delete(QUEUE)
    station.admin.delete(QUEUE)

    assert station.admin.describe() == []
    with pytest.raises(NotFound):
        receiver.receive(1, 5.0)


def test_a_deleted_group_leaves_its_topic_to_the_others(station: Station) -> None:
    audit = station.receiver(AUDIT)
    station.declare(BILLING)
    station.publish(TOPIC, "a")

    station.admin.delete(BILLING)
    station.admin.delete(BILLING)

    assert [each.address for each in station.admin.describe()] == [AUDIT, AUDIT.dead_letters]
    done(audit, take(audit, 1))
    station.admin.delete(TOPIC)
    assert station.admin.describe() == []
