"""Consumers that are killed: how soon what they held is with somebody else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mqkit import Bus, Queue
from mqkit.testing.brokers import RedisProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LEASE, KILLS, MARGIN = 1.0, 20, 5.0


def test_what_a_killed_consumer_held_comes_back_within_the_lease_and_five_seconds(server: RedisProcess) -> None:
    numbers, url = Queue("numbers", int), f"{server.url}?lease={LEASE}"
    took = []
    with Bus(url) as bus:
        for number in range(KILLS):
            bus.publish(numbers, number)
            with holding(url, numbers.name):
                pass  # killed with the message in its hands
            killed = time.monotonic()
            with bus.subscription(numbers) as survivors:
                [back] = survivors.receive(max=1, timeout=30.0)
                took.append(time.monotonic() - killed)
                assert (back.payload, back.attempt, back.deliveries) == (number, 1, 2)
                back.ack()

    assert max(took) <= LEASE + MARGIN


@contextmanager
def holding(url: str, queue: str) -> Iterator[None]:
    """A process that has begun to handle a message and never finishes; killed at the end of the block."""
    command = [sys.executable, "-u", "-m", "mqkit.testing.conformance", "hold", url, queue, "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield
        finally:
            process.kill()
