"""The core without a broker: publishing, calling handlers and settling in one process."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from benchmarks.sample import SMALL, Sample, Stopwatch, percentiles, wait_until
from mqkit import Bus, Queue
from mqkit.codecs import RAW

WARM_UP, MESSAGES = 5_000, 60_000
WAITING = 200_000  # for `engine`: so many that starting the worker, some 10 ms, is not counted on the messages
BODY = b'{"i":10}'

documents: Queue[dict[str, int]] = Queue("documents", dict[str, int])
blobs: Queue[bytes] = Queue("blobs", bytes, codec=RAW)
instants: Queue[float] = Queue("instants", float)


class Tally:
    """Handlers that count and do nothing else."""

    def __init__(self) -> None:
        self.count = 0

    def handle(self, payload: Any) -> None:
        self.count += 1

    async def handle_async(self, payload: Any) -> None:
        self.count += 1


def publish_and_handle() -> Sample:
    tally, bus = Tally(), Bus("memory://")
    bus.on(documents)(tally.handle)
    return _publish_and_handle(bus, tally)


def publish_and_handle_async() -> Sample:
    tally, bus = Tally(), Bus("memory://")
    bus.on(documents)(tally.handle_async)
    return _publish_and_handle(bus, tally)


def _publish_and_handle(bus: Bus, tally: Tally) -> Sample:
    with bus, bus.worker():
        _publish(bus, documents, SMALL, WARM_UP)
        wait_until(lambda: tally.count == WARM_UP)
        watch = Stopwatch()
        _publish(bus, documents, SMALL, MESSAGES)
        wait_until(lambda: tally.count == WARM_UP + MESSAGES)
        return watch.sample(MESSAGES)


def handle_json() -> Sample:
    return _handle_waiting(documents, SMALL)


def handle_raw() -> Sample:
    return _handle_waiting(blobs, BODY)


def _handle_waiting(queue: Queue[Any], payload: Any) -> Sample:
    """Receive, decode, call and settle what waits already."""
    tally, bus = Tally(), Bus("memory://")
    bus.on(queue)(tally.handle)
    with bus:
        bus.declare(queue)
        _publish(bus, queue, payload, WAITING)
        watch = Stopwatch()
        with bus.worker() as worker:
            wait_until(lambda: worker.consumers[0].counts.done == WAITING)
            return watch.sample(WAITING)


def bare_loop() -> Sample:
    """What a program does that keeps its messages in a deque and calls the handler itself."""
    tally = Tally()
    waiting = deque([BODY] * WAITING)
    watch = Stopwatch()
    while waiting:
        tally.handle(waiting.popleft())
    return watch.sample(tally.count)


def latency() -> Sample:
    """From before `publish_soon` to inside the handler, one message at a time on an idle bus."""
    taken: list[float] = []
    bus = Bus("memory://")

    @bus.on(instants)
    def note(sent: float) -> None:
        taken.append(time.monotonic() - sent)

    with bus, bus.worker():
        for count in range(1, 401):
            bus.publish_soon(instants, time.monotonic())
            wait_until(lambda count=count: len(taken) == count, 5.0)  # type: ignore[misc]
            time.sleep(0.005)
    return percentiles(taken[20:])


def _publish(bus: Bus, queue: Queue[Any], payload: Any, count: int) -> None:
    for _ in range(count):
        bus.publish_soon(queue, payload)
    bus.flush()
