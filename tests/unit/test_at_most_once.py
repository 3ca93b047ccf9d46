"""promise="at_most_once": what a handler has begun never comes again, and what none has begun is not lost."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from mqkit import Batch, Bus, Delivery, Queue
from mqkit.backends.base import Turn
from mqkit.backends.memory import MemoryReceiver
from mqkit.errors import Lost
from mqkit.testing import run_until_idle

numbers = Queue("numbers", int)
copies = Queue("copies", int)
keyed = Queue("keyed", int, key=str)


@pytest.fixture(params=["memory", "sqlite"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/once.db")


def stored(bus: Bus) -> int:
    """How many numbers the broker holds, in whoever's hands."""
    admin = bus.link.backend.admin()
    try:
        return sum(each.ready + each.inflight for each in admin.describe() if each.address == numbers.address)
    finally:
        admin.close()


class Handlers:
    """Of three colours. They note what they begin, and end when they are let."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may_end = threading.Event()

    def plain(self, number: int) -> None:
        self.begun.append(number)
        self.may_end.wait(20.0)

    async def asynchronous(self, number: int) -> None:
        self.begun.append(number)
        await asyncio.to_thread(self.may_end.wait, 20.0)

    def batch(self, batch: list[Delivery[int]]) -> None:
        self.begun.extend(delivery.payload for delivery in batch)
        self.may_end.wait(20.0)


@pytest.mark.parametrize(
    ("colour", "options", "at_once"),
    [("plain", {}, 2), ("asynchronous", {}, 2), ("batch", {"batch": Batch(size=3, age=0.01)}, 6)],
)
def test_a_graceful_stop_gives_back_what_no_handler_has_begun(
    bus: Bus, colour: str, options: dict[str, Any], at_once: int
):
    handlers = Handlers()
    bus.on(numbers, promise="at_most_once", concurrency=2, **options)(getattr(handlers, colour))
    bus.publish_many(numbers, range(60))

    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: len(handlers.begun) == at_once)
        consumer.stop(20.0)
        until(lambda: consumer.in_hand == at_once)
        handlers.may_end.set()

    left: list[int] = []
    with bus, bus.subscription(numbers, prefetch=100) as messages:
        while taken := messages.receive(max=100, timeout=10.0 if len(handlers.begun) + len(left) < 60 else 0.2):
            left += [delivery.payload for delivery in taken]
            for delivery in taken:
                delivery.ack()
    assert sorted(handlers.begun + left) == list(range(60))
    assert len(handlers.begun) == at_once


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_is_settled_than_handlers_have_begun(bus: Bus, concurrency: int):
    handlers = Handlers()
    bus.on(numbers, promise="at_most_once", concurrency=concurrency)(handlers.plain)
    bus.publish_many(numbers, range(20))

    with bus.worker():
        until(lambda: len(handlers.begun) == concurrency)
        held = stored(bus)
        handlers.may_end.set()
        until(lambda: len(handlers.begun) == 20)

    assert held == 20 - concurrency


def test_a_handler_that_outlives_its_connection_keeps_its_place(monkeypatch: pytest.MonkeyPatch):
    bus, handlers, receive = Bus("memory://"), Handlers(), MemoryReceiver.receive
    broken: list[int] = []

    def breaks_once(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        if handlers.begun and not broken:
            broken.append(1)
            raise Lost("cut")
        return receive(self, room, timeout)

    monkeypatch.setattr(MemoryReceiver, "receive", breaks_once)
    bus.on(numbers, promise="at_most_once", concurrency=1)(handlers.plain)
    bus.publish_many(numbers, range(10))

    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: broken)
        until(lambda: consumer.in_hand == 9)
        held = stored(bus)
        handlers.may_end.set()
        until(lambda: len(handlers.begun) == 10)

    assert held == 9
    assert handlers.begun == list(range(10))


def test_a_message_is_gone_before_its_handler_starts_and_stays_gone_when_that_fails(bus: Bus):
    held: list[int] = []

    @bus.on(numbers, promise="at_most_once")
    def handle(number: int, delivery: Delivery[int]) -> None:
        held.append(stored(bus))
        delivery.publish(copies, number)
        raise ValueError(number)

    bus.publish(numbers, 1)
    outcomes = [attempt.outcome for attempt in run_until_idle(bus)]

    assert (held, outcomes) == ([0], ["failed"])
    assert bus.dead_letters(numbers).list() == []
    with bus, bus.subscription(copies) as messages:
        assert messages.receive(timeout=0.1) == []


def test_what_a_handler_staged_is_published_when_it_succeeds(bus: Bus):
    copied: list[int] = []

    @bus.on(numbers, promise="at_most_once")
    def handle(number: int, delivery: Delivery[int]) -> None:
        delivery.publish(copies, number)

    bus.on(copies)(lambda number: copied.append(number))
    bus.publish_many(numbers, range(5))
    run_until_idle(bus).raise_first()

    assert sorted(copied) == list(range(5))


@pytest.mark.parametrize("source", [numbers, keyed])
def test_one_handler_at_a_time_takes_messages_in_the_order_of_their_publish(bus: Bus, source: Queue[int]):
    handled: list[int] = []

    @bus.on(source, promise="at_most_once", order="none", concurrency=1)
    def handle(number: int) -> None:
        handled.append(number)

    bus.publish_many(source, range(200))
    run_until_idle(bus).raise_first()

    assert handled == list(range(200))


def test_a_killed_process_takes_along_what_its_handlers_had_begun_and_nothing_else(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/once.db"
    bus, handled = Bus(url), []
    bus.publish_many(numbers, range(30))
    program = Path(__file__).with_name("at_most_once_program.py")
    with subprocess.Popen([sys.executable, str(program), url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        begun = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()

    @bus.on(numbers, promise="at_most_once")
    def handle(number: int) -> None:
        handled.append(number)

    with bus.worker():
        until(lambda: len(handled) >= 28)
        until(lambda: not stored(bus))

    assert sorted(handled + begun) == list(range(30))
