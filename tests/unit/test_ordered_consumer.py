"""When the next message of a key may start: not before everybody can see that the one before it is settled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mqkit import Batch, Bus, Delivery, Queue
from mqkit.backends.base import Done, Turn
from mqkit.backends.memory import MemoryReceiver
from mqkit.testing import run_until_idle

words = Queue("words", str, key=lambda word: word[0])
copies = Queue("copies", str)


@pytest.fixture(params=["memory", "sqlite"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/ordered.db")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What happened on a memory broker that is slow to settle: ("settled", body), and what a test adds."""
    events: list[tuple[str, str]] = []
    receive = MemoryReceiver.receive

    def slow(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        staged = [each.delivery.body.decode().strip('"') for each in self._staged if isinstance(each, Done)]
        if staged:
            time.sleep(0.02)
        turn = receive(self, room, timeout)
        events.extend(("settled", word) for word in staged)
        return turn

    monkeypatch.setattr(MemoryReceiver, "receive", slow)
    return events


def after(events: list[tuple[str, str]], first: tuple[str, str], second: tuple[str, str]) -> bool:
    return events.index(first) < events.index(second)


def test_the_next_of_a_key_starts_when_the_one_before_is_settled(events: list[tuple[str, str]]):
    bus = Bus("memory://")
    bus.on(words, concurrency=4)(lambda word: events.append(("started", word)))
    bus.publish_many(words, ["a1", "a2", "a3", "b1", "b2"])

    run_until_idle(bus).raise_first()

    for earlier, later in (("a1", "a2"), ("a2", "a3"), ("b1", "b2")):
        assert after(events, ("settled", earlier), ("started", later)), events


def test_the_next_batch_of_a_key_starts_when_the_one_before_is_settled(events: list[tuple[str, str]]):
    bus = Bus("memory://")

    @bus.on(words, concurrency=4, batch=Batch(size=2, age=0.05))
    def handle(batch: list[Delivery[str]]) -> None:
        events.extend(("started", delivery.payload) for delivery in batch)

    bus.publish_many(words, ["a1", "a2", "a3", "a4"])

    run_until_idle(bus).raise_first()

    assert after(events, ("settled", "a2"), ("started", "a3")), events
    assert [word for what, word in events if what == "started"] == ["a1", "a2", "a3", "a4"]


def test_a_settlement_that_is_refused_for_its_copies_holds_its_key_back(bus: Bus):
    handled: list[str] = []
    others_are_there = threading.Event()

    @bus.on(words, concurrency=4)
    def handle(word: str, delivery: Delivery[str]) -> None:
        others_are_there.wait(5.0)
        handled.append(word)
        if word == "a1":
            delivery.publish(copies, word)

    bus.declare(copies)
    bus.publish_many(words, ["a1", "a2"])
    with bus.worker() as worker:
        until(lambda: worker.consumers[0].in_hand == 2)
        admin = bus._opened_backend().admin()
        admin.delete(copies.address)
        admin.close()
        bus.publish(words, "a3")
        others_are_there.set()
        until(lambda: "a3" in handled)

    assert handled == ["a1", "a1", "a2", "a3"]


def test_a_stop_between_two_messages_of_a_key_loses_and_repeats_none(bus: Bus):
    handled: list[str] = []
    enough = threading.Event()

    @bus.on(words, concurrency=4)
    def handle(word: str) -> None:
        handled.append(word)
        if len(handled) % 15 == 0:
            enough.set()

    bus.publish_many(words, [f"{key}{number}" for number in range(20) for key in "abc"])
    while len(handled) < 60:
        enough.clear()
        with bus.worker():
            assert enough.wait(10.0)

    for key in "abc":
        assert [word for word in handled if word[0] == key] == [f"{key}{number}" for number in range(20)]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
