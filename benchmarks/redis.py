"""mqkit on a Redis server of its own, without a disk, like the bare driver beside it."""

from __future__ import annotations

from benchmarks.memory import Tally
from benchmarks.redis_raw import MESSAGES
from benchmarks.sample import Sample, Stopwatch, wait_until
from benchmarks.sqlite import documents, fill
from mqkit import Bus
from mqkit.testing.brokers import RedisProcess


def publish() -> Sample:
    with RedisProcess() as server, Bus(server.url) as bus:
        bus.declare(documents)
        watch = Stopwatch()
        fill(bus, MESSAGES)
        return watch.sample(MESSAGES)


def consume() -> Sample:
    with RedisProcess() as server:
        tally, bus = Tally(), Bus(server.url)
        bus.on(documents)(tally.handle)
        with bus:
            bus.declare(documents)
            fill(bus, MESSAGES)
            watch = Stopwatch()
            with bus.worker() as worker:
                wait_until(lambda: worker.consumers[0].counts.done == MESSAGES)
                return watch.sample(MESSAGES)
