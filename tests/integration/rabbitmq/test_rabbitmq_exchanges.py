"""Topics on exchanges of every type, through retries, dead letters and replays."""

from __future__ import annotations

from typing import Any

import pytest

from mqkit import Delivery, Retry, Topic
from mqkit.native import RabbitTopic
from mqkit.patterns.retry import fixed
from tests.rabbit_server import RabbitHarness

pytestmark = pytest.mark.slow

# The options of a topic, and which of `words` its group "mine" gets. The group "all" shares the topic.
EXCHANGES: dict[str, tuple[RabbitTopic, list[str]]] = {
    "topic": (RabbitTopic(subject="about", bindings={"mine": "a.*", "all": "#"}), ["first", "third"]),
    "direct": (
        RabbitTopic(type="direct", subject="about", bindings={"mine": "a.1", "all": ["a.1", "b.2", "a.3"]}),
        ["first"],
    ),
    "fanout": (RabbitTopic(type="fanout"), ["first", "second", "third"]),
    "headers": (
        RabbitTopic(type="headers", bindings={"mine": {"x-match": "all", "colour": "red"}, "all": {"x-match": "all"}}),
        ["second", "third"],
    ),
}

words: dict[str, dict[str, str]] = {
    "first": {"about": "a.1", "colour": "blue"},
    "second": {"about": "b.2", "colour": "red"},
    "third": {"about": "a.3", "colour": "red"},
}


def test_what_waits_for_a_topic_reaches_no_other_whose_name_begins_alike(harness: RabbitHarness) -> None:
    bus = harness.bus()
    got: list[tuple[str, str]] = []
    topics = {name: Topic(name, str, groups=["all"]) for name in ("orders", "orders.eu", "orders.eu.0")}
    for name, topic in topics.items():
        bus.on(topic, group="all")(lambda word, name=name: got.append((name, word)))
    bus.declare(*topics.values())
    for name, topic in topics.items():
        bus.publish(topic, name, delay=0.3)
    with bus.worker():
        harness.wait(lambda: len(got) >= 3)
        for topic in topics.values():
            harness.wait_empty(topic, group="all")

    assert sorted(got) == [(name, name) for name in topics]


@pytest.mark.parametrize("kind", EXCHANGES)
def test_a_group_gets_retries_and_replays_only_of_what_it_is_bound_to(harness: RabbitHarness, kind: str) -> None:
    native, wanted = EXCHANGES[kind]
    events, bus = Topic("events", str, groups=["mine", "all"], native=native), harness.bus()
    mine: list[tuple[str, int]] = []
    others: list[str] = []
    broken = [True]

    @bus.on(events, group="mine", retry=Retry(attempts=2, backoff=fixed(0.2)))
    def handle(word: str, delivery: Delivery[Any]) -> None:
        mine.append((word, delivery.attempt))
        if broken:
            raise ConnectionError(word)

    bus.on(events, group="all")(others.append)
    for word, headers in words.items():
        bus.publish(events, word, headers=headers)
    letters = bus.dead_letters(events, group="mine")

    with bus.worker():
        harness.wait(lambda: len(letters.list()) == len(wanted), within=30.0)
        broken.clear()
        tried = sorted(mine)
        mine.clear()
        replayed = letters.replay()
        harness.wait(lambda: len(mine) == len(wanted), within=30.0)
        for group in ("mine", "all"):
            harness.wait_empty(events, group, within=30.0)

    assert tried == sorted((word, attempt) for word in wanted for attempt in (1, 2))
    assert replayed == len(wanted)
    assert sorted(mine) == sorted((word, 1) for word in wanted)
    assert sorted(others) == sorted(words)
    assert letters.list() == []
