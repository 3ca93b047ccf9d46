"""What memory:// and sqlite:// do alike where a backend on a network may differ, or where no conformance case looks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqkit import Bus, Queue, Topic
from mqkit.errors import TopologyMismatch
from mqkit.native import MemoryTopic, SqliteTopic

MakeBus = Callable[..., Bus]


@pytest.fixture(params=["memory", "sqlite"])
def make_bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeBus]:
    """Buses of one broker."""
    url = f"memory://{uuid.uuid4().hex}" if request.param == "memory" else f"sqlite:///{tmp_path}/topology.db"
    buses: list[Bus] = []

    def make(**options: object) -> Bus:
        buses.append(Bus(url, **options))  # type: ignore[arg-type]
        return buses[-1]

    yield make
    for bus in buses:
        bus.close()


def words(*groups: str) -> Topic[str]:
    return Topic("words", str, key=lambda word: word[0], groups=groups)


def handled(bus: Bus, source: Topic[str] | Queue[str], least: int, **options: object) -> list[str]:
    """Everything it is given, one after the other: at least so many, and whatever comes behind them at once."""
    payloads: list[str] = []
    with bus.subscription(source, **options) as messages:  # type: ignore[call-overload]
        while taken := messages.receive(max=1, timeout=10.0 if len(payloads) < least else 0.3):
            payloads.append(taken[0].payload)
            taken[0].ack()
    return payloads


@pytest.mark.parametrize(("order", "handed_out"), [("none", ["a1", "a2"]), ("key", ["a1"])])
def test_a_group_named_by_its_topic_has_the_order_its_first_consumer_asks_for(make_bus, order: str, handed_out):
    bus = make_bus()
    bus.publish_many(words("statistics"), ["a1", "a2"])

    with bus.subscription(words(), group="statistics", order=order, prefetch=1) as first:
        taken = [each.payload for each in first.receive(max=1, timeout=10.0)]
        with make_bus().subscription(words(), group="statistics", order=order, prefetch=1) as second:
            taken += [each.payload for each in second.receive(max=1, timeout=10.0 if order == "none" else 0.5)]

    assert taken == handed_out


@pytest.mark.parametrize(("order", "other"), [("none", "key"), ("key", "none")])
def test_the_order_of_the_first_consumer_is_fixed_for_the_others(make_bus, order: str, other: str):
    topic = words("statistics")
    make_bus().declare(topic)
    with make_bus().subscription(topic, group="statistics", order=order):
        pass

    with pytest.raises(TopologyMismatch, match=f"order='{order}'.*order='{other}'"):
        with make_bus().subscription(topic, group="statistics", order=other):
            pass
    make_bus().declare(topic)


def test_whoever_only_publishes_to_a_queue_leaves_its_order_to_the_consumer(make_bus):
    queue = Queue("words", str, key=lambda word: word[0])
    make_bus().publish(queue, "a1")

    with make_bus().subscription(queue, order="none") as messages:
        assert messages.receive(max=1, timeout=20.0)[0].payload == "a1"


def test_a_bus_that_may_only_check_decides_the_order_when_it_consumes(make_bus):
    make_bus().declare(words("statistics"))
    with make_bus(declare="check").subscription(words("statistics"), group="statistics", order="none"):
        pass

    with pytest.raises(TopologyMismatch, match="order"):
        with make_bus().subscription(words("statistics"), group="statistics", order="key"):
            pass


def test_what_was_removed_before_the_first_consumer_does_not_disturb_the_order_of_the_rest(make_bus):
    topic = words("statistics")
    bus = make_bus()
    ids = [bus.publish(topic, word) for word in ("a1", "b1", "a2", "a3", "b2")]
    admin = bus.link.backend.admin()
    admin.replace(topic.address._replace(group="statistics"), {ids[2]: []})
    admin.close()
    bus.publish(topic, "a4")

    payloads = handled(bus, topic, 5, group="statistics", order="key")
    assert [word for word in payloads if word[0] == "a"] == ["a1", "a3", "a4"]
    assert [word for word in payloads if word[0] == "b"] == ["b1", "b2"]


@pytest.mark.parametrize("address", ["queue", "topic"])
def test_a_delayed_message_comes_before_what_was_published_after_it_was_due(make_bus, address: str):
    topic = address == "topic"
    to = words("everybody") if topic else Queue("words", str, key=lambda word: word[0])
    bus = make_bus()
    bus.publish(to, "a3", delay=2.0)
    due = time.monotonic() + 2.0
    bus.publish_many(to, ["a1", "b1", "a2"])

    time.sleep(max(0.0, due - time.monotonic()) + 0.1)  # nobody looks meanwhile
    bus.publish(to, "a4")

    assert handled(bus, to, 5, **({"group": "everybody"} if topic else {})) == ["a1", "b1", "a2", "a3", "a4"]


def test_what_was_due_before_a_group_existed_does_not_reach_it(make_bus):
    bus = make_bus()
    bus.publish(words("early"), "before", delay=0.05)

    time.sleep(0.1)
    bus.declare(words("early", "late"))
    bus.publish(words(), "after")

    assert handled(bus, words(), 1, group="late") == ["after"]
    assert handled(bus, words(), 2, group="early") == ["before", "after"]


def test_the_time_to_live_of_a_delayed_event_counts_from_when_it_is_due(make_bus):
    bus = make_bus()
    bus.publish(words("everybody"), "short", delay=0.05, ttl=0.1)
    bus.publish(words("everybody"), "long", delay=0.05, ttl=60.0)

    time.sleep(0.3)  # nobody looks meanwhile

    assert handled(bus, words(), 1, group="everybody") == ["long"]
    [letter] = bus.dead_letters(words(), group="everybody").list()
    assert letter.reason.startswith("expired")


def test_a_group_that_begins_with_the_earliest_does_not_wait_for_delays_that_are_over(make_bus):
    kept = Topic("kept", str, native=(MemoryTopic(retain=60.0), SqliteTopic(retain=60.0)))
    bus = make_bus()
    bus.publish(kept, "delayed", delay=0.5)

    time.sleep(0.6)  # nobody looks meanwhile
    bus.publish(kept, "plain")

    assert handled(bus, kept, 2, group="late", start="earliest") == ["delayed", "plain"]
