"""A consumer whose backend does not answer for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from mqkit import Bus, Delivery, Queue, _consume
from mqkit.backends.base import Turn
from mqkit.backends.memory import MemoryReceiver

numbers = Queue("numbers", int)
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
    monkeypatch.setattr(_consume, "ANSWER", 0.3)
    return answering


@pytest.fixture
def bus() -> Bus:
    bus = Bus("memory://")
    backend = bus._opened_backend()
    backend.capabilities = replace(backend.capabilities, lease=LEASE)
    return bus


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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
        until(lambda: len(consumer._verdicts) == 5)  # one is done, four are to be given back
        answering.set()
        until(lambda: len(handled) >= 5)

    assert sorted(handled) == [(number, 1, True) for number in range(5)]
    assert consumer.counts.released == 4


def test_what_was_settled_before_it_is_handled_needs_no_answer(bus: Bus, answering: threading.Event):
    handled = sleeping_in_the_first(bus, answering, promise="at_most_once")

    with bus.worker():
        until(lambda: len(handled) >= 5)
        answering.set()

    assert handled == [(0, 1, True), *((number, 1, False) for number in range(1, 5))]


def test_a_stop_meanwhile_starts_nothing_either(bus: Bus, answering: threading.Event):
    handled = sleeping_in_the_first(bus, answering)

    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: len(consumer._verdicts) == 5)
        consumer.stop(5.0)
        answering.set()

    assert handled == [(0, 1, True)]
    with bus.subscription(numbers) as messages:
        assert len(messages.receive(max=10, timeout=2.0)) == 4
