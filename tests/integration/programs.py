"""Processes that tests kill, of any backend: `python -m tests.integration.programs PROGRAM URL ...`"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from mqkit import Bus, Delivery, Queue, Retry
from mqkit.patterns.retry import fixed

numbers = Queue("numbers", int)
doubled = Queue("doubled", int, partitions=4)
steps = Queue("steps", list[int], key=lambda step: str(step[0]), partitions=6)


def say(*words: object) -> None:
    """One line in one write, so that a kill never leaves half of it."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def consume(url: str) -> None:
    """Lines are the numbers handled."""
    bus = Bus(url)

    @bus.on(numbers, concurrency=4)
    def handle(number: int) -> None:
        time.sleep(0.005)
        say(number)

    bus.run()


def double(url: str, seed: str) -> None:
    """Each number of `numbers`, doubled, into `doubled`, exactly once. Two of a hundred tries fail."""
    bus, chance = Bus(url), random.Random(int(seed))

    @bus.on(numbers, concurrency=8, promise="exactly_once", retry=Retry(attempts=50, backoff=fixed(0.2), crashes=1000))
    def handle(number: int, delivery: Delivery[int]) -> None:
        delivery.publish(doubled, 2 * number)
        if chance.random() < 0.02:
            raise ConnectionError("as it happens")

    say("ready")
    bus.run()


def consume_slowly(url: str, seconds: str) -> None:
    """Lines are `begin N` and `end N`. Number 0 takes so many seconds, the others none."""
    bus = Bus(url)

    @bus.on(numbers, concurrency=4, retry=Retry(crashes=1000))
    def handle(number: int) -> None:
        say("begin", number)
        if number == 0:
            time.sleep(float(seconds))
        say("end", number)

    bus.run()


def consume_keyed(url: str, seed: str) -> None:
    """Lines are `key number attempt outcome`. Three of ten attempts fail."""
    bus, chance = Bus(url), random.Random(int(seed))

    @bus.on(steps, concurrency=8, retry=Retry(attempts=50, backoff=fixed(0.05), crashes=1000))
    def handle(step: list[int], delivery: Delivery[list[int]]) -> None:
        time.sleep(0.002)
        if chance.random() < 0.3:
            say(*step, delivery.attempt, "failed")
            raise ConnectionError("as it happens")
        say(*step, delivery.attempt, "done")

    bus.run()


def consume_poison(url: str, poison: str) -> None:
    """Lines are the numbers handled; the one named `poison` kills the process."""
    bus = Bus(url)

    @bus.on(numbers, concurrency=4, retry=Retry(crashes=3))
    def handle(number: int) -> None:
        if number == int(poison):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
        say(number)

    bus.run()


if __name__ == "__main__":
    _, program, *arguments = sys.argv
    globals()[program](*arguments)
