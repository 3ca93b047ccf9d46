"""How a bus ends: in order, in bounded time, whoever ends it and whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqkit import Bus, Delivery, Queue, Retry, run
from mqkit.backends.base import Declaration
from mqkit.errors import BlockingCall, Closed, ConfigError, StoreDamaged

words = Queue("words", str)
copies = Queue("copies", str)


class Pool:
    """What a worker provides."""


def wait_until(reached: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20.0
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def program(code: str, *args: str, within: float = 60.0) -> str:
    """What a program prints that ends by itself."""
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=within)
    assert done.returncode == 0, done.stderr
    return done.stdout


def taken(url: str, queue: Queue[str], count: int) -> list[str]:
    """So many payloads, acknowledged."""
    payloads: list[str] = []
    with Bus(url) as bus, bus.subscription(queue) as messages:
        while len(payloads) < count and (deliveries := messages.receive(max=count, timeout=10.0)):
            for delivery in deliveries:
                payloads.append(delivery.payload)
                delivery.ack()
    return payloads


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'app.db'}"


# -- closing -----------------------------------------------------------------------------------------------------------


def test_a_handler_that_runs_while_the_bus_closes_succeeds_and_what_it_staged_is_sent(url: str):
    bus, begun, go_on = Bus(url), threading.Event(), threading.Event()

    @bus.on(words, retry=Retry(attempts=1))
    def handle(word: str, delivery: Delivery[str]) -> None:
        begun.set()
        go_on.wait(10.0)
        delivery.publish(copies, word)
        bus.publish(copies, f"{word}, at once")

    with bus.worker():
        bus.publish(words, "one")
        assert begun.wait(10.0)
        closing = threading.Thread(target=bus.close)
        closing.start()
        wait_until(lambda: bus.link.state == "closing")
        go_on.set()
        closing.join(20.0)

    assert taken(url, copies, 2) == ["one, at once", "one"]
    assert Bus(url).dead_letters(words).list() == []


def test_a_second_close_returns_when_the_first_has_ended(url: str):
    bus, begun, go_on = Bus(url), threading.Event(), threading.Event()

    @bus.on(words)
    def handle(word: str) -> None:
        begun.set()
        go_on.wait(10.0)

    with bus.worker():
        bus.publish(words, "one")
        assert begun.wait(10.0)
        closings = [threading.Thread(target=bus.close) for _ in range(3)]
        for closing in closings:
            closing.start()
        assert all(closing.is_alive() for closing in closings)
        go_on.set()
        for closing in closings:
            closing.join(20.0)

    assert bus.link.state == "closed"


@pytest.mark.parametrize("face", ["with", "async with"])
def test_a_block_whose_bus_cannot_be_opened_leaves_it_closed_and_nothing_running(tmp_path: Path, face: str):
    (tmp_path / "text").write_text("no database")
    bus = Bus(f"sqlite:///{tmp_path / 'text'}")
    before = set(threading.enumerate())

    def enter() -> None:
        with bus:
            raise AssertionError("it is open")

    async def enter_on_a_loop() -> None:
        async with bus.aio:
            raise AssertionError("it is open")

    with pytest.raises(StoreDamaged):
        enter() if face == "with" else asyncio.run(enter_on_a_loop())

    assert set(threading.enumerate()) <= before
    with pytest.raises(Closed):
        bus.publish(words, "one")


def test_a_block_that_a_loop_refuses_leaves_an_open_bus_alone():
    bus = Bus("memory://")
    bus.open()

    async def enter() -> None:
        with bus:
            raise AssertionError("it would have blocked")

    with pytest.raises(BlockingCall):
        asyncio.run(enter())

    assert bus.publish(words, "one")
    bus.close()


def test_threads_that_come_and_close_after_the_publishing_thread_has_ended_are_not_taken_for_it():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    refusals: list[BaseException] = []
    try:
        for _ in range(50):
            bus = Bus("memory://")
            bus.publish(words, "one")

            def close(bus: Bus = bus) -> None:
                try:
                    bus.close()
                except BaseException as exc:
                    refusals.append(exc)

            threads = [threading.Thread(target=close) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(10.0)
    finally:
        sys.setswitchinterval(interval)

    assert refusals == []


def test_a_provider_that_raises_at_its_end_costs_no_accepted_publish(url: str):
    def pool() -> Iterator[Pool]:
        yield Pool()
        raise RuntimeError("the pool cannot be closed")

    bus = Bus(url)
    bus.provide(Pool, pool, per="worker")

    @bus.on(words)
    def handle(word: str, pool: Pool) -> None: ...

    worker = bus.worker()
    worker.__enter__()
    for number in range(100):
        bus.publish_soon(copies, str(number))
    with pytest.raises(RuntimeError, match="the pool cannot be closed"):
        bus.close()

    assert taken(url, copies, 100) == [str(number) for number in range(100)]


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_handler_that_would_close_its_own_bus_is_refused(colour: str):
    bus, said = Bus("memory://"), threading.Event()
    refusals: list[BaseException] = []

    def close() -> None:
        try:
            bus.close()
        except BaseException as exc:
            refusals.append(exc)
        said.set()

    if colour == "def":

        @bus.on(words)
        def handle(word: str) -> None:
            close()

    else:

        @bus.on(words)
        async def task(word: str) -> None:
            close()

    with bus.worker() as worker:
        bus.publish(words, "one")
        assert said.wait(10.0)
        wait_until(lambda: worker.consumers[0].counts.done)

    assert [type(refusal) for refusal in refusals] == [BlockingCall]


def test_awaiting_the_end_of_a_bus_in_its_own_handler_is_refused():
    bus, refusals = Bus("memory://"), []

    @bus.on(words)
    async def handle(word: str) -> None:
        try:
            await bus.aio.close()
        except BlockingCall as exc:
            refusals.append(exc)

    with bus.worker() as worker:
        bus.publish(words, "one")
        wait_until(lambda: worker.consumers[0].counts.done)

    assert len(refusals) == 1


def test_what_a_forgotten_bus_accepted_is_sent_when_the_program_ends(url: str):
    program(
        """
import gc, sys
from mqkit import Bus, Queue
for number in range(500):
    Bus(sys.argv[1]).publish_soon(Queue("words", str), str(number)) if number == 0 else None
bus = Bus(sys.argv[1])
for number in range(1, 500):
    bus.publish_soon(Queue("words", str), str(number))
del bus
gc.collect()
""",
        url,
    )

    assert sorted(map(int, taken(url, words, 500))) == list(range(500))


def test_a_program_that_pulled_and_ended_holds_nothing_back(url: str):
    with Bus(url) as bus:
        bus.publish_many(words, ["one", "two", "three"])

    out = program(
        """
import sys
from mqkit import Bus, Queue
bus = Bus(sys.argv[1])
messages = bus.subscription(Queue("words", str))
print(len(messages.receive(max=1, timeout=10)))
""",
        url,
    )

    assert out.split() == ["1"]
    assert sorted(taken(url, words, 3)) == ["one", "three", "two"]


def test_a_program_ends_although_a_handler_does_not():
    out = program(
        """
import threading
from mqkit import Bus, Queue
words, bus, begun = Queue("words", str), Bus("memory://"), threading.Event()

@bus.on(words)
def handle(word: str) -> None:
    begun.set()
    threading.Event().wait(600)

worker = bus.worker()
worker.__enter__()
bus.publish(words, "one")
print(begun.wait(10))
""",
        within=40.0,
    )

    assert out.split() == ["True"]


def test_a_dropped_subscription_gives_back_what_it_held_when_its_bus_closes(url: str):
    bus = Bus(url)
    bus.publish_many(words, ["one", "two", "three"])
    [delivery] = bus.subscription(words).receive(timeout=10.0)
    delivery.ack()
    gc.collect()

    bus.close()

    assert len(taken(url, words, 2)) == 2


# -- forking -----------------------------------------------------------------------------------------------------------


def test_a_forked_child_gets_nothing_of_its_parents_subscription_and_ends_its_worker_at_once():
    out = program(
        """
import os
from mqkit import Bus, Queue
from mqkit.errors import Closed
words, heard, bus = Queue("words", int), Queue("heard", int), Bus("memory://")

@bus.on(heard)
def handle(number: int) -> None: ...

bus.publish_many(words, [1, 2, 3])
messages = bus.subscription(words)
[first] = messages.receive(timeout=10)
with bus.worker():
    if os.fork() == 0:
        try:
            messages.receive(max=5, timeout=1)
        except Closed as exc:
            print("child", type(exc).__name__, flush=True)
    else:
        os.wait()
        print("parent", sorted(d.payload for d in messages.receive(max=5, timeout=10)), flush=True)
print("left", flush=True)
os._exit(0)
"""
    )

    assert out.splitlines() == ["child Closed", "left", "parent [2, 3]", "left"]


# -- starting ----------------------------------------------------------------------------------------------------------


def consuming_bus() -> Bus:
    bus = Bus("memory://")

    @bus.on(words)
    def handle(word: str) -> None: ...

    return bus


def test_a_source_is_consumed_by_one_worker_of_a_bus_at_a_time():
    bus = consuming_bus()
    with bus.worker():
        with pytest.raises(ConfigError, match=r"words is consumed with .* already"):
            bus.worker().__enter__()
    with bus.worker():
        pass


@pytest.mark.parametrize("only", [[], "words"])
def test_a_worker_of_nothing_or_of_letters_is_refused(only: object):
    with pytest.raises(ConfigError, match="only="):
        consuming_bus().worker(only=only).__enter__()  # type: ignore[arg-type]


@pytest.mark.parametrize("grace", [-1, math.inf, math.nan, "5", True])
def test_a_grace_that_is_no_number_of_seconds_is_refused_and_leaves_the_signals_alone(grace: float):
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(ConfigError, match="grace="):
        run(consuming_bus(), grace=grace)

    assert signal.getsignal(signal.SIGTERM) is before


def test_running_nothing_is_refused():
    with pytest.raises(ConfigError, match="needs a bus"):
        run()


def test_a_bus_that_closes_takes_no_new_consumer():
    bus = consuming_bus()
    bus.open()
    bus.close()

    with pytest.raises(Closed):
        bus.worker().__enter__()


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_a_worker_whose_start_is_cancelled_consumes_nothing():
    bus, starting, go_on = consuming_bus(), threading.Event(), threading.Event()

    def slow() -> Pool:
        starting.set()
        go_on.wait(10.0)
        return Pool()

    @bus.on(copies)
    def handle(word: str, pool: Pool) -> None: ...

    bus.provide(Pool, slow, per="worker")

    async def main() -> None:
        async def work() -> None:
            async with bus.aio.worker():
                raise AssertionError("it was cancelled")

        task = asyncio.create_task(work())
        await asyncio.to_thread(starting.wait, 10.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.to_thread(wait_until, lambda: not bus.link.users)

    asyncio.run(asyncio.wait_for(main(), 20.0))


def test_every_task_that_waits_on_one_subscription_is_told_of_its_end():
    async def main() -> list[object]:
        bus = Bus("memory://")
        async with bus.aio.subscription(words) as messages:
            waiting = [asyncio.create_task(messages.receive(timeout=60.0)) for _ in range(3)]
            await bus.aio.publish(words, "one")
            first, rest = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            assert [delivery.payload for task in first for delivery in task.result()] == ["one"]
        return await asyncio.gather(*rest, return_exceptions=True)

    ends = asyncio.run(asyncio.wait_for(main(), 30.0))

    assert [type(end) for end in ends] == [Closed, Closed]


def test_health_tells_of_a_subscription_that_cannot_take_messages():
    bus = Bus("memory://", declare="check")
    admin = bus.link.backend.admin()
    admin.declare([Declaration(words.address)])
    with bus.subscription(words):
        wait_until(lambda: bus.health().ready)

        admin.delete(words.address)

        wait_until(lambda: not bus.health().ready)
        assert any("words" in reason for reason in bus.health().reasons)
