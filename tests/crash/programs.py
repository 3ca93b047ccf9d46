"""Consumers that are killed by test_crashes: `python -m tests.crash.programs NAME URL LOG`. A handling is a line in LOG."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable

from mqkit import Bus, Delivery, Queue, Retry, fixed
from tests.journal import Journal

numbers = Queue("numbers", int)
copies = Queue("copies", int)
keyed = Queue("keyed", dict, key=lambda event: event["key"])


WORK = 0.002  # seconds a handler is at work, so that kills meet handlers that run


def count(bus: Bus, journal: Journal) -> None:
    @bus.on(numbers, concurrency=4)
    def handle(number: int, delivery: Delivery[int]) -> None:
        time.sleep(WORK)
        journal.write(number, delivery.attempt, delivery.deliveries)


def copy(bus: Bus, journal: Journal) -> None:
    @bus.on(numbers, concurrency=4, promise="exactly_once")
    def handle(number: int, delivery: Delivery[int]) -> None:
        delivery.publish(copies, number)
        time.sleep(WORK)


def ordered(bus: Bus, journal: Journal) -> None:
    @bus.on(keyed, concurrency=8, retry=Retry(attempts=None, backoff=fixed(0.02)))
    def handle(event: dict, delivery: Delivery[dict]) -> None:
        if random.random() < 0.3:
            raise ConnectionError("the dependency is flaky")
        journal.write(event["key"], event["number"], delivery.deliveries)


def poison(bus: Bus, journal: Journal) -> None:
    @bus.on(numbers, concurrency=4, retry=Retry(crashes=2))
    def handle(number: int, delivery: Delivery[int]) -> None:
        if number == 13:
            os.kill(os.getpid(), 9)
        journal.write(number, delivery.attempt, delivery.deliveries)


PROGRAMS: dict[str, Callable[[Bus, Journal], None]] = {
    "count": count,
    "copy": copy,
    "ordered": ordered,
    "poison": poison,
}

if __name__ == "__main__":
    name, url, log = sys.argv[1:]
    bus = Bus(url)
    PROGRAMS[name](bus, Journal(log))
    bus.run(grace=5.0)
