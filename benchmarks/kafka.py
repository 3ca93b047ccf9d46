"""mqkit on Kafka: idempotent, confirmed by all replicas, committed after the handler."""

from __future__ import annotations

from benchmarks.kafka_raw import MESSAGES, PARTITIONS, server
from benchmarks.memory import Tally
from benchmarks.sample import LARGE, Sample, Stopwatch, wait_until
from mqkit import Bus, Queue

documents: Queue[dict[str, str]] = Queue("documents", dict[str, str], partitions=PARTITIONS)


def publish() -> Sample:
    with server() as address, Bus(f"kafka://{address}") as bus:
        bus.declare(documents)
        watch = Stopwatch()
        fill(bus, MESSAGES)
        return watch.sample(MESSAGES)


def consume() -> Sample:
    """From the first message on, for joining a group takes its time."""
    with server() as address:
        tally, bus = Tally(), Bus(f"kafka://{address}")
        bus.on(documents)(tally.handle)
        with bus:
            bus.declare(documents)
            fill(bus, MESSAGES)
            with bus.worker() as worker:
                counts = worker.consumers[0].counts
                wait_until(lambda: counts.done > 0)
                uncounted, watch = counts.done, Stopwatch()
                wait_until(lambda: counts.done == MESSAGES)
                return watch.sample(MESSAGES - uncounted)


def fill(bus: Bus, count: int) -> None:
    for _ in range(count):
        bus.publish_soon(documents, LARGE)
    bus.flush()
