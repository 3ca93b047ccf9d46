"""What declarations decide, and what they leave open, on the embedded backends."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqkit import Bus, Queue, Topic
from mqkit.errors import TopologyMismatch

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


@pytest.mark.parametrize(("order", "handed_out"), [("none", ["a1", "a2"]), ("key", ["a1"])])
def test_a_group_named_by_its_topic_has_the_order_its_first_consumer_asks_for(make_bus, order: str, handed_out):
    bus = make_bus()
    bus.publish_many(words("statistics"), ["a1", "a2"])

    with bus.subscription(words(), group="statistics", order=order, prefetch=1) as first:
        with make_bus().subscription(words(), group="statistics", order=order, prefetch=1) as second:
            taken = [each.payload for hands in (first, second) for each in hands.receive(max=1, timeout=0.5)]

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
        assert messages.receive(max=1, timeout=2.0)[0].payload == "a1"


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
    admin = bus._opened_backend().admin()
    admin.replace(topic.address._replace(group="statistics"), {ids[2]: []})
    admin.close()
    bus.publish(topic, "a4")

    handled = []
    with bus.subscription(topic, group="statistics", order="key") as messages:
        while taken := messages.receive(max=1, timeout=0.3):
            handled.append(taken[0].payload)
            taken[0].ack()

    assert [word for word in handled if word[0] == "a"] == ["a1", "a3", "a4"]
    assert [word for word in handled if word[0] == "b"] == ["b1", "b2"]
