"""Consumers of Kafka that are killed by SIGKILL, join and leave, and what is counted afterwards."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import pytest

from mqkit.backends.kafka import member
from tests.integration.processes import Consumer, Lines, done, inversions, until
from tests.integration.programs import doubled, numbers, steps
from tests.kafka_server import KafkaHarness

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

RECORDS = int(os.environ.get("MQKIT_KAFKA_RECORDS", "20000"))  # of the longest test


@pytest.mark.timeout(400 + RECORDS // 50)
def test_exactly_once_through_kills_and_rebalances_the_output_is_the_function_of_the_input(
    harness: KafkaHarness,
    lines: Lines,
) -> None:
    url, bus = f"{harness.url}&lease=2", harness.bus()
    bus.declare(numbers, doubled)
    for first in range(0, RECORDS, 5000):
        bus.publish_many(numbers, range(first, min(RECORDS, first + 5000)), timeout=60.0)
    consumers = [Consumer(lines, "double", url, str(seed)) for seed in range(3)]
    try:
        for round in range(10):
            goal = RECORDS * (round + 1) // 12
            until(lambda: harness.end_of(doubled) >= goal, 300.0)  # noqa: B023
            consumers.pop(0).kill()
            consumers.append(Consumer(lines, "double", url, str(100 + round)))
            if round % 2:  # a polite leave and another join
                consumers.pop(0).leave()
                consumers.append(Consumer(lines, "double", url, str(200 + round)))
        harness.wait_empty(numbers, within=200.0 + RECORDS / 200)
    finally:
        for consumer in consumers:
            consumer.kill()
    # What a killed process left open hides what lies behind it, until the cluster gives it up.
    until(lambda: len(harness.read_native(doubled)) >= RECORDS, 60.0)

    found = Counter(int(body) for body in harness.read_native(doubled))
    assert found == Counter(2 * number for number in range(RECORDS))


def test_keys_keep_their_order_through_failures_kills_joins_and_leaves(harness: KafkaHarness, lines: Lines) -> None:
    keys, each = 24, 25
    url, bus = f"{harness.url}&lease=2", harness.bus()
    bus.declare(steps)
    consumers = [Consumer(lines, "consume_keyed", url, str(seed)) for seed in range(3)]
    seed = 100
    try:
        for number in range(each):
            bus.publish_many(steps, [[key, number] for key in range(keys)])
        for round in range(10):
            goal = len(lines) + 40
            until(lambda: len(lines) >= goal or len(done(lines)) == keys * each, 60.0)  # noqa: B023
            consumers.pop(0).kill()
            consumers.append(Consumer(lines, "consume_keyed", url, str(seed := seed + 1)))
            if round % 3 == 2:
                consumers.pop(0).leave()
                consumers.append(Consumer(lines, "consume_keyed", url, str(seed := seed + 1)))
        until(lambda: len(done(lines)) == keys * each, 120.0)
    finally:
        for consumer in consumers:
            consumer.kill()

    assert inversions(lines) == []
    assert bus.dead_letters(steps).list() == []


def test_a_message_that_kills_its_process_dies_alone(harness: KafkaHarness, lines: Lines) -> None:
    url, bus = f"{harness.url}&lease=1", harness.bus()
    bus.publish_many(numbers, range(200))
    starts = 0
    while not bus.dead_letters(numbers).list():
        consumer = Consumer(lines, "consume_poison", url, "77")
        starts += 1
        assert starts < 12
        until(lambda: consumer.process.poll() is not None or bus.dead_letters(numbers).list(), 60.0)  # noqa: B023
        consumer.leave()  # if it lives: it may be running another suspect alone, and a kill would convict that one
    last = Consumer(lines, "consume_poison", url, "77")
    harness.wait_empty(numbers, within=30.0)
    last.leave()

    [dead] = bus.dead_letters(numbers).list()
    assert dead.message.body == b"77"
    assert dead.reason.startswith("crashes")
    assert {int(line) for line in lines} == set(range(200)) - {77}


def test_ten_joins_and_leaves_of_healthy_consumers_lose_and_repeat_nothing(harness: KafkaHarness, lines: Lines) -> None:
    bus, total = harness.bus(), 6000
    bus.declare(numbers)
    steady = Consumer(lines, "consume", harness.url)
    try:
        bus.publish_many(numbers, range(total), timeout=60.0)
        for round in range(10):
            until(lambda: len(lines) > 200 * (round + 1), 60.0)  # noqa: B023
            guest = Consumer(lines, "consume", harness.url)
            until(lambda: len(harness.members(numbers)) == 2, 30.0)
            guest.leave()
            until(lambda: len(harness.members(numbers)) == 1, 30.0)
        harness.wait_empty(numbers, within=60.0)
    finally:
        steady.leave()

    assert Counter(map(int, lines)) == Counter(range(total))


def test_what_was_done_out_of_order_is_neither_lost_nor_repeated_by_a_kill(harness: KafkaHarness, lines: Lines) -> None:
    """The first message of a partition is stuck; all behind it are done, and their commit cannot pass it."""
    bus, url = harness.bus(), f"{harness.url}&lease=5&partitions=1"
    bus.close()
    harness.bus(url).publish_many(numbers, range(300))
    stuck = Consumer(lines, "consume_slowly", url, "60")
    until(lambda: len({line for line in lines if line.startswith("end")}) == 299, 30.0)
    until(lambda: harness.depth(numbers).ready == 0 and harness.depth(numbers).inflight == 1, 10.0)
    stuck.kill()
    del lines[:]
    second = Consumer(lines, "consume_slowly", url, "0")
    harness.wait_empty(numbers, within=30.0)
    second.leave()

    assert lines == ["begin 0", "end 0"]


def test_a_slow_handler_causes_no_rebalance(harness: KafkaHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times as long as the driver lets a consumer go without a poll."""
    monkeypatch.setattr(member, "SLOWEST", 0.5)
    bus, begun = harness.bus(harness.url_with(lease=6.0)), list[int]()
    ended = threading.Event()

    @bus.on(numbers, concurrency=4)
    def handle(number: int) -> None:
        begun.append(number)
        if number == 0:
            time.sleep(20.0)
            ended.set()

    bus.publish_many(numbers, range(50))
    with bus.worker():
        until(lambda: 0 in begun, 20.0)
        before = harness.members(numbers)
        assert ended.wait(60.0)
        after = harness.members(numbers)
        harness.wait_empty(numbers)

    assert len(before) == 1
    assert after == before
    assert sorted(begun) == list(range(50))
