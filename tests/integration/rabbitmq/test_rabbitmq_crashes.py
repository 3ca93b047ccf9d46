"""Consumers of RabbitMQ that are killed by SIGKILL, and what is counted afterwards."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from mqkit import Delivery, Queue, Retry
from mqkit.patterns.retry import fixed
from tests.integration.processes import Consumer, Lines, done, inversions, until
from tests.integration.programs import numbers, steps
from tests.rabbit_server import RabbitHarness

pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
def test_what_a_killed_consumer_held_is_with_another_within_ten_seconds_twenty_times(
    harness: RabbitHarness, lines: Lines
) -> None:
    bus, total = harness.bus(), 4000
    survivor = Consumer(lines, "consume", harness.url)
    bus.publish(numbers, 0)
    until(lambda: lines, 60.0)
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
def test_keys_keep_their_order_through_failures_kills_joins_and_leaves(harness: RabbitHarness, lines: Lines) -> None:
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
        until(lambda: len(done(lines)) == keys * each, 120.0)
    finally:
        for consumer in consumers:
            consumer.kill()

    assert inversions(lines) == []
    assert bus.dead_letters(steps).list() == []


@pytest.mark.timeout(300)
def test_a_message_that_kills_its_process_dies_alone(harness: RabbitHarness, lines: Lines) -> None:
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
