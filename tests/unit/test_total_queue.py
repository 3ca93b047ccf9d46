"""
Everything that goes in comes out: handlers that fail, wait, reject and are stopped half-way, and at the end a count.

The same on both embedded backends, both colours, in batches and by key.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from waiting import until

from mqkit import Batch, Bus, Delivery, Queue, Reject, Retry, RetryLater, fixed

COUNT, KEYS = 1500, 20
RETRY = Retry(attempts=None, backoff=fixed(0.005))


class Ledger:
    """What handlers did, and how often two of one key ran at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chance = random.Random(1)
        self._running: Counter[str] = Counter()
        self.done: dict[str, list[int]] = defaultdict(list)
        self.overlaps = 0
        self.worked = 0

    def work(self, event: dict) -> None:
        with self._lock:
            self._running[event["key"]] += 1
            self.overlaps += self._running[event["key"]] > 1
            luck = self._chance.random()
            self.worked += 1
        try:
            if luck < 0.20:
                raise ConnectionError("flaky")
            if luck < 0.25:
                raise RetryLater(after=0.01)
            if luck < 0.27:
                raise Reject("no")
            with self._lock:
                self.done[event["key"]].append(event["number"])
        finally:
            with self._lock:
                self._running[event["key"]] -= 1


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/total.db"


@pytest.mark.parametrize("handler", ["def", "async def", "batch"])
@pytest.mark.parametrize("order", ["none", "key"])
def test_nothing_is_lost_doubled_or_overtaken_while_workers_come_and_go(url: str, handler: str, order: str):
    bus, ledger = Bus(url), Ledger()
    queue = Queue("events", dict, key=(lambda event: event["key"]) if order == "key" else None)
    register(bus, queue, ledger, handler)
    for number in range(COUNT):
        bus.publish_soon(queue, {"key": f"k{number % KEYS}", "number": number})
    bus.flush()

    for _ in range(200):
        with bus.worker(grace=30.0) as worker:
            # It is stopped in the middle of its work.
            goal = ledger.worked + COUNT // 10
            until(lambda goal=goal: ledger.worked >= goal or waiting(bus) == 0)
        if not worker.busy and waiting(bus) == 0:
            break

    dead = Counter(json.loads(letter.message.body)["number"] for letter in bus.dead_letters(queue).list(limit=COUNT))
    done = Counter(number for numbers in ledger.done.values() for number in numbers)
    assert done + dead == Counter(range(COUNT))
    if order == "key" and handler != "batch":
        assert ledger.overlaps == 0
        assert all(numbers == sorted(numbers) for numbers in ledger.done.values())
    bus.close()


def register(bus: Bus, queue: Queue, ledger: Ledger, handler: str) -> None:
    if handler == "batch":

        @bus.on(queue, batch=Batch(size=50, age=0.01), retry=RETRY, concurrency=3)
        def every(batch: list[Delivery[dict]]) -> None:
            for delivery in batch:
                try:
                    ledger.work(delivery.payload)
                except Exception as exc:
                    delivery.fail(exc)

    elif handler == "async def":

        @bus.on(queue, retry=RETRY, concurrency=16)
        async def task(event: dict) -> None:
            ledger.work(event)

    else:

        @bus.on(queue, retry=RETRY, concurrency=16)
        def plain(event: dict) -> None:
            ledger.work(event)


def waiting(bus: Bus) -> int:
    admin = bus.link.backend.admin()
    try:
        return sum(depth.ready + depth.inflight + depth.delayed for depth in admin.describe() if not depth.address.dead)
    finally:
        admin.close()
