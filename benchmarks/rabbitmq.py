"""mqkit on RabbitMQ: quorum queue, persistent, confirmed, settled after the handler."""

from __future__ import annotations

from benchmarks.memory import Tally
from benchmarks.rabbitmq_raw import MESSAGES, QUEUE, declare, server_url
from benchmarks.sample import LARGE, Sample, Stopwatch, wait_until
from mqkit import Bus, Queue

documents: Queue[dict[str, str]] = Queue(QUEUE, dict[str, str])


def publish() -> Sample:
    with server_url() as url:
        declare(url)
        with Bus(url) as bus:
            bus.declare(documents)
            watch = Stopwatch()
            fill(bus, MESSAGES)
            return watch.sample(MESSAGES)


def consume() -> Sample:
    with server_url() as url:
        declare(url)
        tally, bus = Tally(), Bus(url)
        bus.on(documents)(tally.handle)
        with bus:
            bus.declare(documents)
            fill(bus, MESSAGES)
            watch = Stopwatch()
            with bus.worker() as worker:
                wait_until(lambda: worker.consumers[0].counts.done == MESSAGES)
                return watch.sample(MESSAGES)


def fill(bus: Bus, count: int) -> None:
    for _ in range(count):
        bus.publish_soon(documents, LARGE)
    bus.flush()
