"""Whatever a handler raises, its own message pays for it and no other."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from typing import Any

import pytest
from waiting import until

from mqkit import Batch, Bus, Delivery, Queue, Reject, Retry, RetryLater, fixed
from mqkit.errors import ConfigError
from mqkit.message import Message
from mqkit.testing import VirtualClock, run_until_idle

words = Queue("words", str)
copies = Queue("copies", str)
TWICE = Retry(attempts=2, backoff=fixed(1.0))


class Unspeakable(Exception):
    def __str__(self) -> str:
        return self.text  # never set


class Unfinished(Reject):
    def __init__(self) -> None:
        """Forgets to call the one above."""


class Endless(RetryLater):
    def __init__(self) -> None:
        super().__init__(after=0.0)
        self.after = None  # type: ignore[assignment]


def raises(error: Any) -> Any:
    def handle(word: str) -> None:
        if word == "bad":
            raise error
        handled.append(word)

    return handle


handled: list[str] = []


@pytest.fixture
def bus() -> Bus:
    handled.clear()
    return Bus("memory://", clock=VirtualClock())


@pytest.mark.parametrize(
    ("error", "tries", "text"),
    [
        (Unspeakable(), 2, "Unspeakable after 2 attempts"),
        (Reject(ValueError("no such account")), 1, "no such account"),
        (Unfinished(), 1, ""),
        (Endless(), 1, "Endless, which could not be judged"),
        (SystemExit(1), 2, "SystemExit after 2 attempts"),
        (KeyError, 2, "KeyError after 2 attempts"),
    ],
)
def test_a_strange_failure_is_counted_and_ends_in_the_dead_letters(bus: Bus, error: Any, tries: int, text: str):
    bus.on(words, retry=TWICE)(raises(error))
    bus.publish_many(words, ["bad", "good"])

    trace = run_until_idle(bus)

    assert handled == ["good"]
    assert len([attempt for attempt in trace if attempt.outcome != "done"]) == tries
    [letter] = bus.dead_letters(words).list()
    assert letter.reason.startswith(text)
    assert letter.attempts == tries


def test_a_handler_that_exits_or_awaits_something_cancelled_has_failed(bus: Bus):
    @bus.on(words, retry=TWICE)
    async def handle(word: str) -> None:
        if word == "exit":
            sys.exit(1)
        inner = asyncio.ensure_future(asyncio.sleep(30.0))
        inner.cancel()
        await inner

    bus.publish_many(words, ["exit", "cancelled"])

    outcomes = [attempt.outcome for attempt in run_until_idle(bus)]

    assert outcomes.count("retry") == outcomes.count("dead") == 2
    assert sorted(letter.error_type for letter in bus.dead_letters(words).list()) == ["CancelledError", "SystemExit"]


def test_a_filter_that_exits_fails_its_message_and_the_others_are_handled(bus: Bus):
    def where(message: Message) -> bool:
        if message.body == b'"bad"':
            sys.exit(1)
        return True

    bus.on(words, concurrency=1, retry=TWICE, where=where)(raises(None))
    bus.publish_many(words, ["bad", "good"])

    run_until_idle(bus)

    assert handled == ["good"]
    assert [letter.error_type for letter in bus.dead_letters(words).list()] == ["SystemExit"]


@dataclasses.dataclass
class Money:
    cents: int

    def __post_init__(self) -> None:
        if self.cents < 0:
            raise RuntimeError("negative")


def test_a_payload_class_that_refuses_its_values_does_not_poison_its_neighbours(bus: Bus):
    money, anything, paid = Queue("money", Money), Queue("money"), []

    @bus.on(money, batch=Batch(size=3, age=1.0), retry=TWICE)
    def pay(batch: list[Delivery[Money]]) -> None:
        paid.extend(delivery.payload.cents for delivery in batch)

    bus.publish_many(anything, [{"cents": 1}, {"cents": -1}, {"cents": 2}])
    run_until_idle(bus)

    assert paid == [1, 2]
    [letter] = bus.dead_letters(money).list()
    assert letter.reason == "undecodable: body of 12 bytes does not fit 'money': negative"


def test_a_pull_loop_never_sees_what_a_payload_class_refuses():
    money, anything, bus = Queue("money", Money), Queue("money"), Bus("memory://")
    bus.publish_many(anything, [{"cents": -1}, {"cents": 2}])

    with bus, bus.subscription(money) as messages:
        [delivery] = messages.receive(max=2, timeout=10.0)
        delivery.ack()
        until(lambda: bus.dead_letters(money).list())

    assert delivery.payload.cents == 2


def test_a_bus_that_was_closed_before_its_copies_left_fails_that_delivery_only():
    bus, other, tries, slow = Bus("memory://"), Bus("memory://"), [], []
    staged, closed, running, end = (threading.Event() for _ in range(4))

    @bus.on(words, concurrency=2, retry=Retry(attempts=2, backoff=fixed(0.0)))
    def handle(word: str, delivery: Delivery[str]) -> None:
        if word == "slow":
            slow.append(word)
            running.set()
            assert end.wait(10.0)
            return
        tries.append(delivery.attempt)
        if len(tries) == 1:
            delivery.publish(copies, "copy", via=other)
            staged.set()
            assert closed.wait(10.0)

    with bus, bus.worker() as worker:
        other.open()
        bus.publish_many(words, ["via", "slow"])
        assert staged.wait(10.0)
        assert running.wait(10.0)
        other.close()
        closed.set()
        until(lambda: len(tries) == 2)
        end.set()
        until(lambda: worker.consumers[0].counts.done == 2)

    assert (tries, slow) == ([1, 2], ["slow"])


def test_threads_of_one_handler_stage_messages_with_ids_of_their_own(bus: Bus):
    ids: list[str] = []

    @bus.on(words)
    def handle(word: str, delivery: Delivery[str]) -> None:
        threads = [
            threading.Thread(target=lambda: ids.extend(delivery.publish(copies, word) for _ in range(50)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    bus.on(copies)(raises(None))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        bus.publish(words, "x")
        run_until_idle(bus)
    finally:
        sys.setswitchinterval(interval)

    assert len(set(ids)) == len(ids) == len(handled) == 400


def test_a_delivery_fails_with_an_exception_and_nothing_else():
    bus = Bus("memory://")
    bus.publish(words, "x")

    with bus, bus.subscription(words) as messages:
        [delivery] = messages.receive(timeout=10.0)
        with pytest.raises(ConfigError, match=r"fail\(None\)"):
            delivery.fail(None)  # type: ignore[arg-type]
        delivery.ack()
