"""A backend that cannot keep a released message waiting: what the core does instead, with copies."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqkit import Bus, Delivery, Queue, Retry, RetryLater, Topic, _ending, fixed
from mqkit.errors import CapabilityMissing
from mqkit.testing import VirtualClock, run_until_idle

emails = Queue("emails", str, partitions=3)
urgent = Queue("urgent", str, priorities=3)
receipts = Queue("receipts", str)
keyed = Queue("keyed", str, key=lambda text: text[0])


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("third_party")))
    monkeypatch.setattr(_ending, "COPY_RETRY", 0.05)


@pytest.fixture
def bus() -> Bus:
    return Bus("distant://", clock=VirtualClock())


def broker(bus: Bus) -> Any:
    return bus.link.backend


def failing(bus: Bus, source: Any, retry: Retry, **options: Any) -> list[tuple[float, int]]:
    """A handler that always fails; when, and which attempt."""
    tries: list[tuple[float, int]] = []
    began = broker(bus)._broker.clock.now()

    @bus.on(source, retry=retry, **options)
    def handle(text: str, delivery: Delivery[str]) -> None:
        tries.append((round(broker(bus)._broker.clock.now() - began, 3), delivery.attempt))
        raise ConnectionError(text)

    return tries


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(("source", "options"), [(emails, {}), (Topic("events", str, groups=["g"]), {"group": "g"})])
def test_a_retry_waits_as_a_copy_that_carries_the_attempt(bus: Bus, source: Any, options: dict[str, str]):
    tries = failing(bus, source, Retry(attempts=3, backoff=fixed(4.0)), **options)
    id = bus.publish(source, "x", key="k", headers={"a": "b"})

    run_until_idle(bus)

    assert tries == [(0.0, 1), (4.0, 2), (8.0, 3)]
    [letter] = bus.dead_letters(source, **options).list()
    assert (letter.message.id, letter.message.key, dict(letter.message.headers)) == (id, "k", {"a": "b"})
    assert letter.attempts == 3
    if options:
        assert len([each for each in broker(bus).published if each.address.group == "g" and not each.address.dead]) == 2


def test_the_moment_of_the_first_failure_travels_with_the_copies(bus: Bus):
    tries = failing(bus, emails, Retry(attempts=None, within=10.0, backoff=fixed(4.0)))
    bus.publish(emails, "x")

    run_until_idle(bus)

    assert [at for at, _ in tries] == [0.0, 4.0, 8.0]


def test_a_replay_begins_anew_also_with_the_time_since_the_first_failure(bus: Bus):
    tries = failing(bus, emails, Retry(attempts=None, within=10.0, backoff=fixed(4.0)))
    bus.publish(emails, "x")
    run_until_idle(bus)

    assert bus.dead_letters(emails).replay() == 1
    run_until_idle(bus)

    assert [attempt for _, attempt in tries] == [1, 2, 3, 1, 2, 3]


def test_priority_and_time_to_live_go_on_in_the_copies(bus: Bus):
    tries = failing(bus, urgent, Retry(attempts=5, backoff=fixed(4.0)))
    bus.publish(urgent, "x", priority=2, ttl=6.0)

    run_until_idle(bus)

    assert tries == [(0.0, 1), (4.0, 2)]
    assert {message.priority for message in broker(bus).published if not message.address.dead} == {2}
    [letter] = bus.dead_letters(urgent).list()
    assert letter.reason.startswith("expired")


def test_an_interrupted_attempt_is_not_counted_and_comes_again_later(bus: Bus):
    attempts: list[int] = []

    @bus.on(emails)
    async def handle(text: str, delivery: Delivery[str]) -> None:
        attempts.append(delivery.attempt)
        if len(attempts) < 3:
            asyncio.current_task().cancel()
            await asyncio.sleep(0)

    bus.publish(emails, "x")
    run_until_idle(bus)

    assert attempts == [1, 1, 1]


def test_a_retry_of_an_ordered_key_stays_in_its_place(bus: Bus):
    handled: list[str] = []

    @bus.on(keyed, retry=Retry(attempts=2, backoff=fixed(4.0)))
    def handle(text: str, delivery: Delivery[str]) -> None:
        handled.append(text)
        if text == "a1" and delivery.attempt == 1:
            raise ConnectionError

    bus.publish_many(keyed, ["a1", "a2"])
    run_until_idle(bus)

    assert handled == ["a1", "a1", "a2"]
    assert len(broker(bus).published) == 2


def test_copies_that_are_refused_are_tried_again_without_running_the_handler_again(bus: Bus):
    handled: list[str] = []

    @bus.on(emails)
    def handle(text: str, delivery: Delivery[str]) -> None:
        handled.append(text)
        delivery.publish(receipts, "one")
        delivery.publish(receipts, "two")
        broker(bus).refuses = 3

    bus.publish(emails, "x")
    with bus.worker() as worker:
        until(lambda: worker.consumers[0].counts.done == 1)

    assert handled == ["x"]
    with bus.subscription(receipts) as messages:
        found = set[str]()  # what was not refused at first may be there twice
        while len(found) < 2:
            [copy] = messages.receive(max=1, timeout=20.0)
            found.add(copy.payload)
        assert found == {"one", "two"}


def test_what_waits_for_its_copies_is_given_back_by_a_stop(bus: Bus):
    tries = failing(bus, emails, Retry(attempts=1))
    bus.declare(emails)
    broker(bus).refuses = 0
    bus.publish(emails, "x")
    broker(bus).refuses = 1_000_000
    with bus.worker() as worker:
        until(lambda: worker.consumers[0]._endings.parked)
    assert len(tries) == 1

    broker(bus).refuses = 0
    run_until_idle(bus)

    assert len(tries) == 2
    assert len(bus.dead_letters(emails).list()) == 1


def test_what_was_not_surely_settled_first_is_not_handled_at_most_once(bus: Bus):
    handled: list[str] = []
    silent = threading.Event()

    @bus.on(emails, promise="at_most_once", concurrency=1)
    def handle(text: str) -> None:
        assert silent.is_set()
        handled.append(text)

    bus.publish(emails, "x")
    broker(bus).silent = 1
    with bus.worker():
        until(lambda: not broker(bus).silent)
        silent.set()
        until(lambda: handled)

    assert handled == ["x"]


def test_a_back_off_that_cannot_be_waited_for_is_refused_and_a_later_wish_shortened(bus: Bus):
    broker(bus).capabilities = replace(broker(bus).capabilities, delay=5.0)
    refused = Bus("distant://")
    broker(refused).capabilities = broker(bus).capabilities
    refused.on(emails, retry=Retry(backoff=fixed(60.0)))(print)
    with pytest.raises(CapabilityMissing, match=r"back-off of 60 s \(at most 5 s\)"):
        refused.open()
    tries: list[float] = []

    @bus.on(emails, retry=Retry(attempts=2, backoff=fixed(5.0)))
    def handle(text: str) -> None:
        tries.append(broker(bus)._broker.clock.now())
        raise RetryLater(after=3600.0)

    bus.publish(emails, "x")
    run_until_idle(bus)

    assert round(tries[1] - tries[0], 3) == 5.0


def test_in_order_the_same_holds_for_how_long_a_message_may_stay_in_its_place(bus: Bus):
    broker(bus).capabilities = replace(broker(bus).capabilities, hold=5.0)
    refused, steps = Bus("distant://"), Queue("steps", str, key=str)
    broker(refused).capabilities = broker(bus).capabilities
    refused.on(steps, retry=Retry(backoff=fixed(60.0)))(print)
    with pytest.raises(CapabilityMissing, match=r"back-off of 60 s in order \(at most 5 s\)"):
        refused.open()
    tries: list[float] = []

    @bus.on(steps, retry=Retry(attempts=2, backoff=fixed(5.0)))
    def handle(text: str) -> None:
        tries.append(broker(bus)._broker.clock.now())
        raise RetryLater(after=3600.0)

    bus.publish(steps, "x")
    run_until_idle(bus)

    assert round(tries[1] - tries[0], 3) == 5.0


@pytest.mark.parametrize(
    ("source", "options", "refused"),
    [
        (emails, {}, True),
        (emails, {"retry": Retry(attempts=1)}, False),
        (emails, {"promise": "at_most_once"}, False),
        (keyed, {}, False),
    ],
)
def test_a_retry_is_refused_where_nothing_can_wait(bus: Bus, source: Any, options: dict[str, Any], refused: bool):
    broker(bus).capabilities = replace(broker(bus).capabilities, delay=0.0)
    bus.on(source, **options)(print)

    if refused:
        with pytest.raises(CapabilityMissing, match="distant cannot do retry"):
            bus.open()
    else:
        bus.open()
        bus.close()


def test_every_message_says_how_many_partitions_its_destination_has(bus: Bus):
    failing(bus, emails, Retry(attempts=2, backoff=fixed(4.0)))
    bus.publish(emails, "x")
    run_until_idle(bus)

    assert [(each.partitions, each.address.dead) for each in broker(bus).published] == [
        (3, False),
        (3, False),
        (1, True),
    ]

    replaced: list[int] = []
    admin = broker(bus).admin()
    [letter] = admin.browse(emails.address.dead_letters, limit=1)
    admin.replace = lambda address, copies: (
        replaced.extend(each.partitions for one in copies.values() for each in one) or 1
    )
    broker(bus).admin = lambda: admin
    bus.dead_letters(emails).replay([letter.id])

    assert replaced == [3]
