"""Signal handlers that publish, as servers do which notice the end of their workers: they may interrupt a publish anywhere."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest

from mqkit import Bus, Queue
from mqkit._spill import Spill
from mqkit._topology import declarations_of
from mqkit.errors import BufferFull

numbers = Queue("numbers", int)
others = Queue("others", int)
INTERRUPTED = 250  # times, at least


@pytest.fixture(params=["memory", "sqlite"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bus]:
    with Bus("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/numbers.db") as bus:
        yield bus


@contextmanager
def interruptions(handle: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """This thread runs `handle` in a signal handler again and again, never within itself; yields how often it did."""
    handled, inside = 0, threading.Lock()

    def on_signal(*_: object) -> None:
        nonlocal handled
        if inside.acquire(blocking=False):
            handle()
            inside.release()
            handled += 1

    before = signal.signal(signal.SIGVTALRM, on_signal)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0.001, 0.001)  # while the process works, not while it waits
    try:
        yield lambda: handled
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def interrupted_in(function: Any, handle: Callable[[], object]) -> Iterator[None]:
    """`handle` runs in a signal handler, once, where this thread calls `function` next."""
    assert isinstance(function, FunctionType)
    interrupted = False

    def on_call(frame: FrameType, event: str, _: object) -> None:
        nonlocal interrupted
        if event == "call" and frame.f_code is function.__code__ and not interrupted:
            interrupted = True
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: handle())
    sys.setprofile(on_call)
    try:
        yield
    finally:
        sys.setprofile(None)
        signal.signal(signal.SIGUSR1, before)
    assert interrupted


def stored(bus: Bus, queue: Queue[int]) -> list[int]:
    admin = bus.link.backend.admin()
    try:
        return [int(one.body) for one in admin.browse(queue.address, limit=1000)]
    finally:
        admin.close()


def test_a_signal_handler_publishes_elsewhere_while_a_destination_becomes_known(bus: Bus) -> None:
    late = Queue("late", int)
    with interrupted_in(declarations_of, lambda: bus.publish(others, 1, timeout=5.0)):
        bus.publish(late, 2)

    assert (stored(bus, others), stored(bus, late)) == ([1], [2])


def test_a_signal_handler_that_interrupts_a_spill_is_told_so_and_harms_nothing() -> None:
    def publish() -> None:
        with pytest.raises(BufferFull, match="signal handler"):
            bus.publish_soon(numbers, 99)

    with Bus("memory://", buffer=1, overflow="spill") as bus:
        bus.declare(numbers)
        with bus.link.backend._broker.lock:  # type: ignore[attr-defined]  # nothing gets an answer meanwhile
            for number in range(3):
                bus.publish_soon(numbers, number)
            with interrupted_in(Spill.put, publish):
                bus.publish_soon(numbers, 3)
            bus.publish_soon(numbers, 4)
        bus.flush()

        assert stored(bus, numbers) == list(range(5))


@pytest.mark.parametrize("soon", [False, True], ids=["publish", "publish_soon and flush"])
def test_a_signal_handler_that_interrupts_a_publish_publishes(bus: Bus, soon: bool) -> None:
    sent = count()
    with interruptions(lambda: bus.publish(numbers, next(sent))) as interrupted:
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
