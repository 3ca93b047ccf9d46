"""Consumers of SQS that are killed by SIGKILL or leave politely, and what is counted afterwards."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tests.integration import processes
from tests.integration.processes import Lines, done, inversions, until
from tests.integration.sqs import sqs_programs
from tests.integration.sqs.sqs_programs import numbers, steps
from tests.sqs_server import SqsHarness

pytestmark = pytest.mark.slow


class Consumer(processes.Consumer):
    module = sqs_programs.__name__
    farewell = 60.0


@pytest.mark.timeout(240)
def test_eight_killed_consumers_of_three_thousand_messages_lose_none(harness: SqsHarness, lines: Lines) -> None:
    harness.bus().publish_many(numbers, range(3000), timeout=60.0)
    url = harness.url_with(lease=5)
    consumers = [Consumer(lines, "consume", url) for _ in range(3)]
    try:
        for kill in range(1, 9):
            until(lambda kill=kill: len(set(lines)) >= kill * 250, within=60.0)  # type: ignore[misc]
            consumers.pop(0).kill()
            consumers.append(Consumer(lines, "consume", url))
        until(lambda: len(set(lines)) == 3000, within=60.0)
        harness.wait_empty(numbers, within=30.0)
    finally:
        for consumer in consumers:
            consumer.kill()

    twice = [number for number, count in Counter(lines).items() if count > 1]
    assert len(twice) <= 8 * 30  # of each that was killed, what ran and what was not settled yet


@pytest.mark.timeout(300)
def test_order_by_key_holds_over_four_processes_with_failures_kills_and_polite_leaves(
    harness: SqsHarness, lines: Lines
) -> None:
    keys, each = 20, 40
    harness.bus().publish_many(steps, [[key, number] for number in range(each) for key in range(keys)], timeout=60.0)
    url, chance = harness.url_with(lease=5), random.Random(7)
    consumers = [Consumer(lines, "consume_keyed", url, str(seed)) for seed in range(4)]

    try:
        for round_ in range(1, 7):
            until(lambda round_=round_: len(done(lines)) >= round_ * 100, within=90.0)  # type: ignore[misc]
            one = consumers.pop(chance.randrange(4))
            if round_ % 2:
                one.kill()
            else:
                one.leave()
            consumers.append(Consumer(lines, "consume_keyed", url, str(10 + round_)))
        until(lambda: len(done(lines)) == keys * each, within=120.0)
    finally:
        for consumer in consumers:
            consumer.kill()

    assert inversions(lines) == []


@pytest.mark.timeout(240)
def test_of_a_fifo_queue_only_the_message_that_kills_its_process_dies(harness: SqsHarness, lines: Lines) -> None:
    harness.bus().publish_many(steps, [[key, number] for number in range(2) for key in range(10)])
    url = harness.url_with(lease=5)

    for _ in range(12):
        consumer = Consumer(lines, "consume_poison", url, "3")
        until(
            lambda consumer=consumer: (  # type: ignore[misc]
                consumer.process.poll() is not None or harness.depth(steps, dead=True).ready == 2
            ),
            within=60.0,
        )
        if consumer.process.poll() is None:
            break
        consumer.end()
    until(lambda: len(set(lines)) == 18, within=60.0)
    consumer.kill()

    letters = harness.bus().dead_letters(steps).list()
    assert sorted(letter.message.body for letter in letters) == [b"[3,0]", b"[3,1]"]
    assert {letter.reason.partition(":")[0] for letter in letters} == {"crashes"}
    assert {line.split()[0] for line in lines} == {str(key) for key in range(10) if key != 3}


@pytest.mark.timeout(120)
def test_ten_processes_that_declare_groups_of_one_topic_at_once_make_each_once(
    harness: SqsHarness, lines: Lines
) -> None:
    processes = [Consumer(lines, "declare", harness.url, str(number)) for number in range(10)]

    assert [process.end() for process in processes] == [0] * 10

    groups = sorted(depth.address.group for depth in harness.describe() if not depth.address.dead)
    assert groups == sorted(["shared", *(f"own-{number}" for number in range(10))])
    assert len(harness.subscriptions("events")) == 11
