"""Signal handlers that publish, as servers do which notice the end of their workers: they may interrupt a publish anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from mqkit import Bus, Queue

numbers = Queue("numbers", int)
INTERRUPTED = 250  # times, at least


@pytest.fixture(params=["memory", "sqlite"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    with Bus("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/numbers.db") as bus:
        yield bus


@contextmanager
def interruptions(handle: Callable[[], None]) -> Iterator[Callable[[], int]]:
    """This thread runs `handle` in a signal handler again and again; yields how often it did."""
    handled = 0

    def on_signal(*_: object) -> None:
        nonlocal handled
        handle()
        handled += 1

    before = signal.signal(signal.SIGVTALRM, on_signal)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)  # while the process works, not while it waits
    try:
        yield lambda: handled
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("soon", [False, True], ids=["publish", "publish_soon and flush"])
def test_a_signal_handler_that_interrupts_a_publish_publishes(bus: Bus, soon: bool) -> None:
    sent, inside = count(), threading.Lock()

    def publish() -> None:
        if inside.acquire(blocking=False):  # not within itself, without end
            bus.publish(numbers, next(sent))
            inside.release()

    with interruptions(publish) as interrupted:
        while interrupted() < INTERRUPTED:
            for _ in range(100):
                bus.publish_soon(numbers, next(sent)) if soon else bus.publish(numbers, next(sent))
            bus.flush()

    total = next(sent)
    with bus.subscription(numbers, prefetch=1000) as messages:
        found: list[int] = []
        while deliveries := messages.receive(max=1000, timeout=1.0 if len(found) >= total else 10.0):
            found += [delivery.payload for delivery in deliveries]
            for delivery in deliveries:
                delivery.ack()
    assert sorted(found) == list(range(total))
