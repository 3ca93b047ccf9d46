"""Consumers of RabbitMQ that are killed by SIGKILL, and what is counted afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from mqkit import Delivery, Queue, Retry
from mqkit.patterns.retry import fixed
from tests.integration.rabbitmq.rabbitmq_programs import numbers, steps
from tests.rabbit_server import RabbitHarness

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]

PROGRAMS = "tests.integration.rabbitmq.rabbitmq_programs"


class Consumer:
    """A process; `lines` is shared by several, in the order in which they were written."""

    def __init__(self, lines: list[str], program: str, *arguments: str) -> None:
        self._lines = lines
        self.process = subprocess.Popen(
            [sys.executable, "-m", PROGRAMS, program, *arguments], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def leave(self) -> None:
        self.process.terminate()
        self.end()

    def end(self) -> int:
        code = self.process.wait(30.0)
        self._reader.join(10.0)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.strip())


def until(condition: Callable[[], object], within: float) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"not within {within:g} s"
        time.sleep(0.01)
    return time.monotonic() - began


@pytest.mark.timeout(300)
def test_what_a_killed_consumer_held_is_with_another_within_ten_seconds_twenty_times(harness: RabbitHarness) -> None:
    lines: list[str] = []
    bus, total = harness.bus(), 4000
    survivor = Consumer(lines, "consume", harness.url)
    try:
        for round in range(20):
            victim = Consumer(lines, "consume", harness.url)
            bus.publish_many(numbers, range(round * 200, round * 200 + 200))
            until(lambda: harness.server.api.connections(harness.vhost) and len(lines) > round * 150, 30.0)  # noqa: B023
            victim.kill()
            expected = set(range(round * 200 + 200))
            until(lambda: expected <= {int(line) for line in lines}, 10.0)  # noqa: B023
    finally:
        survivor.kill()

    handled = Counter(int(line) for line in lines)
    assert set(handled) == set(range(total))
    assert bus.dead_letters(numbers).list() == []


@pytest.mark.timeout(300)
def test_keys_keep_their_order_through_failures_kills_joins_and_leaves(harness: RabbitHarness) -> None:
    lines: list[str] = []
    keys, each = 24, 25
    bus = harness.bus()
    bus.declare(steps)
    consumers = [Consumer(lines, "consume_keyed", harness.url, str(seed)) for seed in range(3)]
    seed = 100
    try:
        for number in range(each):
            bus.publish_many(steps, [[key, number] for key in range(keys)])
        for round in range(10):
            goal = len(lines) + 40
            until(lambda: len(lines) >= goal or harness.depth(steps).ready == 0, 60.0)  # noqa: B023
            consumers.pop(0).kill()
            consumers.append(Consumer(lines, "consume_keyed", harness.url, str(seed := seed + 1)))
            if round % 3 == 2:
                consumers.pop(0).leave()
                consumers.append(Consumer(lines, "consume_keyed", harness.url, str(seed := seed + 1)))
        until(lambda: len(_done(lines)) == keys * each, 120.0)
    finally:
        for consumer in consumers:
            consumer.kill()

    assert _inversions(lines) == []
    assert bus.dead_letters(steps).list() == []


def _done(lines: list[str]) -> set[tuple[int, int]]:
    split = [line.split() for line in list(lines)]
    return {(int(key), int(number)) for key, number, _, outcome in split if outcome == "done"}


def _inversions(lines: list[str]) -> list[str]:
    """Attempts on a message although an earlier one of its key was not done: a done one may be repeated after a kill."""
    wrong = []
    done: dict[int, int] = defaultdict(lambda: -1)  # the last number of each key that was done
    for line in lines:
        key, number, _, outcome = line.split()
        if int(number) > done[int(key)] + 1:
            wrong.append(line)
        if outcome == "done":
            done[int(key)] = max(done[int(key)], int(number))
    return wrong


@pytest.mark.timeout(300)
def test_a_message_that_kills_its_process_dies_alone(harness: RabbitHarness) -> None:
    lines: list[str] = []
    bus = harness.bus()
    bus.publish_many(numbers, range(200))
    starts = 0
    while not bus.dead_letters(numbers).list():
        consumer = Consumer(lines, "consume_poison", harness.url, "77")
        starts += 1
        assert starts < 12
        until(lambda: consumer.process.poll() is not None or bus.dead_letters(numbers).list(), 60.0)  # noqa: B023
        consumer.leave()  # if it lives: it may be running another suspect alone, and a kill would convict that one
    last = Consumer(lines, "consume_poison", harness.url, "77")
    harness.wait_empty(numbers, within=30.0)
    last.leave()

    [dead] = bus.dead_letters(numbers).list()
    assert dead.message.body == b"77"
    assert dead.reason.startswith("crashes")
    assert {int(line) for line in lines} == set(range(200)) - {77}


def test_delays_through_the_ladder_are_exact_in_number_and_never_early(harness: RabbitHarness) -> None:
    bus, late = harness.bus(), Queue("late", list[float])
    arrived: list[tuple[int, float]] = []
    bus.on(late, concurrency=1)(lambda sent: arrived.append((int(sent[0]), time.time() - sent[1] - sent[2])))

    with bus.worker():
        for number in range(120):
            delay = number % 12 / 10
            bus.publish_soon(late, [number, time.time(), delay], delay=delay)
        bus.flush()
        harness.wait_empty(late, within=30.0)

    assert Counter(number for number, _ in arrived) == Counter(range(120))
    assert min(lateness for _, lateness in arrived) >= 0


def test_every_try_waits_its_back_off_and_the_count_is_exact(harness: RabbitHarness) -> None:
    bus, tries = harness.bus(), list[tuple[int, int, float]]()

    @bus.on(numbers, concurrency=8, retry=Retry(attempts=3, backoff=fixed(0.3)))
    def handle(number: int, delivery: Delivery[int]) -> None:
        tries.append((number, delivery.attempt, time.monotonic()))
        raise ConnectionError("always")

    bus.publish_many(numbers, range(30))
    with bus.worker():
        harness.wait(lambda: harness.depth(numbers, dead=True).ready == 30, within=30.0)

    assert Counter((number, attempt) for number, attempt, _ in tries) == Counter(
        (number, attempt) for number in range(30) for attempt in (1, 2, 3)
    )
    times = {(number, attempt): at for number, attempt, at in tries}
    assert all(times[number, attempt + 1] - times[number, attempt] >= 0.3 for number in range(30) for attempt in (1, 2))
