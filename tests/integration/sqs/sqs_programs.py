"""Processes that tests of SQS kill: `python -m tests.integration.sqs.sqs_programs PROGRAM URL ...`"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from mqkit import Bus, Delivery, Queue, Retry, Topic
from mqkit.patterns.retry import fixed
from tests.integration.programs import consume, numbers, say

__all__ = ["consume", "consume_keyed", "consume_poison", "declare", "numbers", "steps"]

steps = Queue("steps", list[int], key=lambda step: str(step[0]))


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
    """Lines are `key number`; the key named `poison` kills the process."""
    bus = Bus(url)

    @bus.on(steps, concurrency=4, retry=Retry(crashes=2))
    def handle(step: list[int]) -> None:
        if step[0] == int(poison):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.002)
        say(*step)

    bus.run()


def declare(url: str, number: str) -> None:
    """One more group of a topic that others declare too."""
    bus = Bus(url)
    bus.declare(Topic("events", int, groups=["shared", f"own-{number}"]))
    bus.close()


if __name__ == "__main__":
    _, program, *arguments = sys.argv
    globals()[program](*arguments)
