"""mqkit on SQS, which is a MiniStack: settled after the handler. Calls count what botocore sends, polls too."""

from __future__ import annotations

from benchmarks.memory import Tally
from benchmarks.sample import LARGE, Sample, wait_until
from benchmarks.sqs_raw import MESSAGES, Calls
from mqkit import Bus, Queue
from mqkit.testing.brokers import AwsProcess

documents: Queue[dict[str, str]] = Queue("documents", dict[str, str])


def publish() -> Sample:
    with AwsProcess() as server, Bus(server.url) as bus:
        bus.declare(documents)
        calls = Calls()
        fill(bus, MESSAGES)
        return calls.sample(MESSAGES)


def consume() -> Sample:
    with AwsProcess() as server:
        tally, bus = Tally(), Bus(f"{server.url}&wait=1")
        bus.on(documents)(tally.handle)
        with bus:
            bus.declare(documents)
            fill(bus, MESSAGES)
            calls = Calls()
            with bus.worker() as worker:
                wait_until(lambda: worker.consumers[0].counts.done == MESSAGES)
            return calls.sample(MESSAGES)  # after its end, by which everything is settled


def fill(bus: Bus, count: int) -> None:
    for _ in range(count):
        bus.publish_soon(documents, LARGE)
    bus.flush()
