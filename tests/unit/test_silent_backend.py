"""A consumer whose backend does not answer for a while."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import pytest
from waiting import until

from mqkit import Bus, Delivery, Queue, _consume, _gate
from mqkit._call import Interrupted
from mqkit.backends.base import Turn
from mqkit.backends.memory import MemoryReceiver
from mqkit.errors import Lost, Unavailable

numbers = Queue("numbers-of-silent-ones", int)
LEASE = 0.2


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is cleared, no receiver gets an answer."""
    answering, receive = threading.Event(), MemoryReceiver.receive
    answering.set()

    def stalled(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        answering.wait(20.0)
        return receive(self, room, timeout)

    monkeypatch.setattr(MemoryReceiver, "receive", stalled)
    monkeypatch.setattr(_gate, "ANSWER", 0.3)
    return answering


@pytest.fixture
def bus() -> Bus:
    bus = Bus("memory://")
    backend = bus.link.backend
    backend.capabilities = replace(backend.capabilities, lease=LEASE)
    return bus


def sleeping_in_the_first(bus: Bus, answering: threading.Event, **options: object) -> list[tuple[int, int, bool]]:
    """Of five: the backend falls silent while the first is handled, and the others wait for longer than a lease."""
    handled: list[tuple[int, int, bool]] = []

    @bus.on(numbers, concurrency=1, **options)  # type: ignore[call-overload]
    def handle(number: int, delivery: Delivery[int]) -> None:
        handled.append((number, delivery.attempt, answering.is_set()))
        if len(handled) == 1:
            answering.clear()
            time.sleep(2 * LEASE)

    bus.publish_many(numbers, range(5))
    return handled


def test_nothing_is_started_that_may_be_anothers_by_now(bus: Bus, answering: threading.Event):
    handled = sleeping_in_the_first(bus, answering)

    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: len(consumer._verdicts) == 5)
        given_back = [isinstance(outcome, Interrupted) for _, outcome in consumer._verdicts]
        answering.set()
        until(lambda: len(handled) >= 5)

    assert sorted(handled) == [(number, 1, True) for number in range(5)]
    assert consumer.counts.released >= 4
    assert sorted(given_back) == [False, True, True, True, True]


def test_nothing_is_started_at_most_once_that_could_not_be_settled_first(bus: Bus, answering: threading.Event):
    handled = sleeping_in_the_first(bus, answering, promise="at_most_once")

    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: consumer._verdicts)  # the first is done, and the pump hears nothing
        answering.set()
        until(lambda: len(handled) >= 5)

    assert handled == [(number, 1, True) for number in range(5)]


def test_a_stop_meanwhile_starts_nothing_either(bus: Bus, answering: threading.Event):
    handled = sleeping_in_the_first(bus, answering)

    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: len(consumer._verdicts) == 5)
        consumer.stop(5.0)
        answering.set()

    assert handled == [(0, 1, True)]
    with bus.subscription(numbers) as messages:
        left = [messages.receive(max=1, timeout=20.0) for _ in range(4)]
        assert [len(each) for each in left] == [1, 1, 1, 1]
        assert messages.receive(max=1, timeout=0.0) == []


def test_one_that_cannot_serve_is_asked_again_within_a_lease_and_that_is_logged_once(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A consumer that is not heard of for a lease loses what it holds. Now and then it is served in between."""
    asked = 0

    def unable(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        nonlocal asked
        asked += 1
        if asked % 10:
            raise Unavailable("a part of it is out of order")
        return Turn()

    monkeypatch.setattr(MemoryReceiver, "receive", unable)
    monkeypatch.setattr(_consume, "QUIET", 1000.0)
    bus.on(numbers)(lambda _: None)

    with caplog.at_level(logging.WARNING, "mqkit"), bus.worker():
        until(lambda: asked > 60)

    said = [vars(record) for record in caplog.records if record.message == "consumer.unavailable"]
    [said] = [each for each in said if each["source"] == numbers.name]
    assert said["error"] == "a part of it is out of order"


def test_one_that_fails_to_close_is_opened_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    receive, close, seen, broken = MemoryReceiver.receive, MemoryReceiver.close, list[int](), [True]

    def lost(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        if broken:
            raise Lost("gone")
        return receive(self, room, timeout)

    def failing(self: MemoryReceiver) -> None:
        close(self)
        if broken:
            broken.clear()
            raise KeyError("of a driver")

    monkeypatch.setattr(MemoryReceiver, "receive", lost)
    monkeypatch.setattr(MemoryReceiver, "close", failing)
    bus.on(numbers)(seen.append)

    with caplog.at_level(logging.WARNING, "mqkit"), bus.worker():
        bus.publish(numbers, 1)
        until(lambda: seen == [1])

    assert "consumer.close_failed" in [record.message for record in caplog.records]
