"""L: cancellation, threads, asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from mqkit import Bus, Delivery, Message, Queue, Retry, fixed
from mqkit.errors import MqkitError
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import GOLDEN, act, drain, take_all
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import lease_of, lease_to_keep, short_lease
from mqkit.testing.conformance.programs_ef import sums_in

tenant = contextvars.ContextVar("tenant", default="nobody")


class TestConcurrency:
    """L. Cancellation, threads, asyncio."""

    @case("L.01")
    def test_a_call_that_is_cancelled_before_it_begins_has_no_effect(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()

        async def cancel_first() -> None:
            task = asyncio.create_task(bus.aio.publish(words, "cancelled"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await bus.aio.publish(words, "after")

        asyncio.run(cancel_first())

        assert [one.payload for one in take_all(bus, words)] == ["after"]

    @case("L.02")
    def test_a_cancelled_publish_arrives_once_or_not_at_all_and_spares_the_others(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()

        async def cancel_every_third() -> set[int]:
            tasks = [asyncio.create_task(bus.aio.publish(numbers, number)) for number in range(150)]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks[::3]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            return {number for number, outcome in enumerate(ended) if isinstance(outcome, str)}

        confirmed = asyncio.run(cancel_every_third())
        bus.flush()
        seen = [one.payload for one in take_all(bus, numbers)]

        assert len(seen) == len(set(seen))
        assert confirmed <= set(seen) <= set(range(150))
        assert confirmed >= {number for number in range(150) if number % 3}

    @case("L.09")
    def test_a_cancelled_receive_loses_nothing(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()

        async def receive_impatiently() -> list[int]:
            seen: list[int] = []
            async with bus.aio.subscription(numbers) as messages:
                while len(seen) < 60:
                    task = asyncio.create_task(messages.receive(timeout=10.0))
                    # Half of them are given up while a message may just be on its way into the task's hands.
                    publish = asyncio.create_task(bus.aio.publish_many(numbers, [1]))
                    await publish
                    if len(seen) % 2:
                        task.cancel()
                    ended = (await asyncio.gather(task, return_exceptions=True))[0]
                    if isinstance(ended, asyncio.CancelledError):
                        ended = await messages.receive(timeout=10.0)
                    assert not isinstance(ended, BaseException)
                    for delivery in ended:
                        delivery.ack()
                        seen.append(delivery.payload)
            return seen

        seen = asyncio.run(asyncio.wait_for(receive_impatiently(), 40.0 * harness.scale))

        assert seen == [1] * 60
        harness.wait_empty(numbers)

    @case("L.03")
    def test_context_variables_reach_handlers_and_do_not_leak_from_one_to_the_next(self, harness: Harness) -> None:
        plain, awaited, bus = Queue(harness.unique("plain"), int), Queue(harness.unique("awaited"), int), harness.bus()
        seen: dict[str, list[str]] = {"def": [], "async def": []}

        @bus.on(plain, concurrency=1)
        def handle(number: int) -> None:
            seen["def"].append(tenant.get())
            tenant.set(f"that of message {number}")

        @bus.on(awaited, concurrency=1)
        async def handle_async(number: int) -> None:
            seen["async def"].append(tenant.get())
            tenant.set(f"that of message {number}")

        bus.publish_many(plain, range(3))
        bus.publish_many(awaited, range(3))
        token = tenant.set("the worker's")
        try:
            drain(harness, bus)
        finally:
            tenant.reset(token)

        assert seen == {"def": ["the worker's"] * 3, "async def": ["the worker's"] * 3}

    @case("L.04", needs=("lease",))
    def test_a_handler_slower_than_the_lease_keeps_its_message(self, harness: Harness) -> None:
        words, lease = Queue(harness.unique("words"), str), lease_to_keep(harness)
        begun: list[int | None] = []
        ended: list[str] = []

        def consumer() -> Bus:
            bus = harness.bus(harness.url_with(lease=lease))

            @bus.on(words, concurrency=1)
            def handle(word: str, delivery: Delivery[str]) -> None:
                begun.append(delivery.deliveries)
                threading.Event().wait(2.2 * lease)  # the work itself
                ended.append(word)

            return bus

        first, second = consumer(), consumer()
        first.publish(words, "slow")
        with first.worker(), second.worker():
            harness.wait(lambda: ended)
            harness.wait_empty(words)

        assert begun == [1 if harness.capabilities.counts_deliveries else None]
        assert ended == ["slow"]

    @case("L.05")
    def test_a_handler_that_holds_the_interpreter_has_not_failed_and_what_waits_behind_it_is_handled(
        self, harness: Harness
    ) -> None:
        words, bus, size = Queue(harness.unique("words"), str), harness.bus(lease_of(harness, 0.5)), sums_in(1.5)
        seen: list[tuple[str, int]] = []

        @bus.on(words, concurrency=2, retry=Retry(attempts=1))
        def handle(word: str, delivery: Delivery[str]) -> None:
            if word == "heavy":
                sum(range(size))
            seen.append((word, delivery.attempt))

        for word in ("heavy", "light", "last"):
            bus.publish(words, word)
        drain(harness, bus)

        counted = Counter(seen)
        assert set(counted) == {("heavy", 1), ("light", 1), ("last", 1)}
        assert max(counted.values()) <= (1 if harness.capabilities.lease is None else 2)
        assert bus.dead_letters(words).list() == []

    @pytest.mark.slow
    @case("L.05", needs=("lease", "survives_process", "processes"))
    def test_a_handler_that_holds_the_interpreter_beyond_the_lease_costs_few_repetitions_and_its_process_goes_on(
        self, harness: Harness, tmp_path: Path
    ) -> None:
        words, url, bus = Queue(harness.unique("words"), str), short_lease(harness), harness.bus()
        go = tmp_path / "go"
        other = harness.consumer("hold_the_interpreter", words.name, "0.01", str(go), url=url)
        other.wait_line("ready", within=60.0)
        bus.publish(words, "heavy")
        bus.publish(words, "light")

        hog = harness.consumer("hold_the_interpreter", words.name, "3.0", url=url)
        hog.wait_line("begin heavy")
        go.touch()
        harness.wait_empty(words, within=30.0)
        hog.wait_line("end heavy")
        other.kill()
        bus.publish(words, "after")
        hog.wait_line("end after")
        harness.wait_empty(words, within=30.0)

        begun = Counter(line for one in (hog, other) for line in one.lines() if line.startswith("begin"))
        assert set(begun) == {"begin heavy 1", "begin light 1", "begin after 1"}  # taken over: no failed attempt
        # Taken over once; and once more where what the one that sleeps had asked for before is answered to it meanwhile.
        assert max(begun.values()) <= 3, (hog.lines(), other.lines())
        assert bus.dead_letters(words).list() == []

    @pytest.mark.slow
    @case("L.06", needs=("survives_process", "processes"))
    def test_a_signal_lets_the_running_handler_finish_and_gives_the_rest_back(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        bus.publish_many(numbers, range(5))

        process = harness.consumer("run_until_signal", numbers.name, "3.0")
        process.wait_line("begin")
        process.terminate()
        code = process.wait()

        running = int(process.lines()[0].split()[1])
        assert (code, process.lines()) == (0, [f"begin {running}", f"end {running}", "stopped"])
        assert sorted((one.payload, one.attempt) for one in take_all(bus, numbers)) == [
            (number, 1) for number in range(5) if number != running
        ]

    @case("L.07")
    def test_an_iteration_that_is_abandoned_gives_its_messages_back(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        first.publish_many(numbers, range(10))

        acknowledged: list[int] = []
        with first.subscription(numbers, prefetch=8) as messages:
            for delivery in messages:
                if len(acknowledged) == 2:
                    break
                delivery.ack()
                acknowledged.append(delivery.payload)

        assert sorted((one.payload, one.attempt) for one in take_all(second, numbers)) == [
            (number, 1) for number in range(10) if number not in acknowledged
        ]

    @case("L.08")
    def test_handlers_of_both_colours_give_the_same_trace(self, harness: Harness) -> None:
        policy = Retry(attempts=3, backoff=fixed(0.02), never=(KeyError,))
        plain, awaited, bus = Queue(harness.unique("plain"), str), Queue(harness.unique("awaited"), str), harness.bus()
        mails = Queue(harness.unique("mails"), str)
        mailed: list[str] = []
        bus.on(mails)(mailed.append)

        @bus.on(plain, retry=policy)
        def handle(word: str, delivery: Delivery[str]) -> None:
            delivery.publish(mails, word)
            act(word, delivery.attempt)

        @bus.on(awaited, retry=policy)
        async def handle_async(word: str, delivery: Delivery[str]) -> None:
            delivery.publish(mails, word)
            await asyncio.sleep(0)
            act(word, delivery.attempt)

        async def publish() -> dict[str, str]:
            return {await bus.aio.publish(awaited, word): word for word in GOLDEN}

        ids = {bus.publish(plain, word): word for word in GOLDEN} | asyncio.run(publish())

        trace = drain(harness, bus)

        for queue in (plain, awaited):
            found: dict[str, list[str]] = {word: [] for word in GOLDEN}
            for one in trace.of(queue.name):
                found[ids[one.message_id]].append(f"{one.attempt} {one.outcome} {type(one.error).__name__}")
            assert found == GOLDEN
        assert sorted(mailed) == sorted(["fine", "flaky", "settled"] * 2)

    @case("L.08")
    def test_both_faces_of_a_bus_do_the_same(self, harness: Harness) -> None:
        blocking, awaitable = harness.bus(), harness.bus()

        by_blocking = asyncio.run(use_every_verb(Blocking(blocking), blocking, harness))
        by_awaiting = asyncio.run(use_every_verb(awaitable.aio, awaitable, harness))

        assert by_blocking == by_awaiting == EVERY_VERB

    @case("L.10")
    def test_an_async_handler_past_its_timeout_is_cancelled_and_has_failed(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        cancelled: list[int] = []

        @bus.on(words, timeout=0.2, retry=Retry(attempts=2, backoff=fixed(0.02)))
        async def handle(word: str, delivery: Delivery[str]) -> None:
            try:
                await asyncio.sleep(3600.0)
            except asyncio.CancelledError:
                cancelled.append(delivery.attempt)
                raise

        bus.publish(words, "endless")

        drain(harness, bus)

        assert cancelled == [1, 2]
        [dead] = bus.dead_letters(words).list()
        assert (dead.error_type, dead.attempts) == ("TimedOut", 2)

    @case("L.11")
    def test_a_handler_cancelled_by_shutdown_has_not_failed(self, harness: Harness) -> None:
        words, first, second = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        begun: list[int] = []
        seen: list[tuple[str, int]] = []

        @first.on(words, retry=Retry(attempts=1))
        async def wait_for_ever(word: str, delivery: Delivery[str]) -> None:
            begun.append(delivery.attempt)
            await asyncio.sleep(3600.0)

        @second.on(words)
        def handle(word: str, delivery: Delivery[str]) -> None:
            seen.append((word, delivery.attempt))

        first.publish(words, "long")
        began = time.monotonic()
        with first.worker(grace=0.1):
            harness.wait(lambda: begun)
        stopped = time.monotonic() - began
        with second.worker():
            harness.wait(lambda: seen)

        assert (begun, seen) == ([1], [("long", 1)])
        assert stopped < 10.0 * harness.scale
        assert second.dead_letters(words).list() == []


class Blocking:
    """The blocking face of a bus, subscription or dead letters: what is awaited here runs there, in a thread."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        verb = getattr(self._inner, name)

        async def call(*args: Any, **options: Any) -> Any:
            done = await asyncio.to_thread(verb, *args, **options)
            return asyncio.wrap_future(done) if isinstance(done, Future) else done

        return call

    def subscription(self, *args: Any, **options: Any) -> Blocking:
        return Blocking(self._inner.subscription(*args, **options))

    def dead_letters(self, *args: Any, **options: Any) -> Blocking:
        return Blocking(self._inner.dead_letters(*args, **options))

    def worker(self) -> Blocking:
        return Blocking(self._inner.worker())

    async def __aenter__(self) -> Blocking:
        await asyncio.to_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._inner.__exit__, None, None, None)


async def use_every_verb(face: Any, bus: Bus, harness: Harness) -> list[object]:
    """One program over the whole API of a bus, and what it saw."""
    words, handled = Queue(harness.unique("words"), str), Queue(harness.unique("handled"), str)
    trace: list[object] = []
    done: list[tuple[str, int]] = []

    @bus.on(handled, concurrency=1, retry=Retry(attempts=2, backoff=fixed(0.01)))
    def handle(word: str, delivery: Delivery[str]) -> None:
        done.append((word, delivery.attempt))
        if word == "flaky" and delivery.attempt == 1:
            raise ConnectionError(word)

    await face.open()
    await face.declare(words, handled)
    trace.append(await face.publish(words, "one", id="1", headers={"colour": "red"}, key="k"))
    trace.append(len(set(await face.publish_many(words, ["two", "three"]))))
    trace.append(await (await face.publish_soon(words, "four", id="4")))
    await face.flush()
    sent_on = Message(id="5", body=b'"five"', content_type="application/json", headers={"colour": "blue"})
    trace.append(await face.forward(words, sent_on))
    for wrong in ({"payload": 7}, {"payload": "x", "delay": -1.0}, {"payload": "x", "headers": {"mq-x": "y"}}):
        trace.append(await raised(face.publish(words, **wrong)))

    letters = face.dead_letters(words)
    async with face.subscription(words, prefetch=10, retry=Retry(attempts=2, never=(ValueError,))) as messages:
        taken: dict[str, Delivery[str]] = {}
        while len(taken) < 5:
            taken |= {one.payload: one for one in await messages.receive(max=10, timeout=5.0)}
        trace.append([(word, one.key, dict(one.headers), one.attempt) for word, one in sorted(taken.items())])
        taken["one"].ack()
        taken["two"].reject("no use")
        taken["three"].fail(ValueError("broken"))
        taken["four"].ack()
        taken["five"].retry(after=0.0)
        [again] = await messages.receive(timeout=10.0)
        trace.append((again.payload, again.attempt))
        again.ack()
    trace.append(sorted((one.message.body, one.reason) for one in await letters.list()))
    rejected = [one.id for one in await letters.list(where=lambda one: one.reason == "no use")]
    trace.append([(await letters.get(id)).attempts for id in rejected] + [await letters.get("none such")])
    trace += [await letters.replay(rejected), await letters.purge(), await letters.list()]
    async with face.subscription(words) as messages:
        [replayed] = await messages.receive(timeout=10.0)
        trace.append((replayed.payload, replayed.attempt, replayed.id in rejected))
        replayed.ack()

    async with face.worker():
        await face.publish(handled, "plain")
        await face.publish(handled, "flaky")
        await asyncio.to_thread(harness.wait_empty, handled)
    trace.append(sorted(done))
    await face.close()
    trace.append(await raised(face.publish(words, "late")))
    trace.append(await raised(messages.receive(timeout=0.1)))
    return trace


async def raised(call: Awaitable[object]) -> str:
    """The name of the error with which a call ends."""
    with pytest.raises(MqkitError) as found:
        await call
    return type(found.value).__name__


EVERY_VERB = [
    "1",
    2,
    "4",
    "5",
    "Unencodable",
    "ConfigError",
    "Unencodable",
    [
        ("five", None, {"colour": "blue"}, 1),
        ("four", None, {}, 1),
        ("one", "k", {"colour": "red"}, 1),
        ("three", None, {}, 1),
        ("two", None, {}, 1),
    ],
    ("five", 2),
    [(b'"three"', "ValueError, which is not retried: broken"), (b'"two"', "no use")],
    [1, None],
    1,
    1,
    [],
    ("two", 1, True),
    [("flaky", 1), ("flaky", 2), ("plain", 1)],
    "Closed",
    "Closed",
]
