"""mqkit on a SQLite file that is synced before anything counts as published or settled."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.folder import folder
from benchmarks.memory import Tally, instants
from benchmarks.sample import LARGE, SMALL, Sample, Stopwatch, percentiles, wait_until
from benchmarks.sqlite_raw import MESSAGES
from mqkit import Bus, Queue

documents: Queue[dict[str, str]] = Queue("documents", dict[str, str])
numbers: Queue[dict[str, int]] = Queue("numbers", dict[str, int])


@contextmanager
def file_url() -> Iterator[str]:
    with folder() as here:
        yield f"sqlite:///{here}/mqkit.db"


def publish() -> Sample:
    with file_url() as url, Bus(url) as bus:
        bus.declare(documents)
        watch = Stopwatch()
        fill(bus, MESSAGES)
        return watch.sample(MESSAGES)


def consume() -> Sample:
    with file_url() as url:
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


def publish_waiting() -> Sample:
    return _publish_from(1)


def publish_waiting_from_8_threads() -> Sample:
    return _publish_from(8)


def _publish_from(threads: int, seconds: float = 2.0) -> Sample:
    """Every thread waits for each message of its own, as request handlers do."""
    counts = [0] * threads
    with file_url() as url, Bus(url) as bus:
        bus.publish(documents, LARGE)

        def work(thread: int) -> None:
            while time.monotonic() < until:
                bus.publish(documents, LARGE)
                counts[thread] += 1

        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        until = time.monotonic() + seconds
        watch = Stopwatch()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return watch.sample(sum(counts))


def latency_between_processes() -> Sample:
    """From before `publish` in one process to inside the handler in another; the file is idle in between."""
    count = 300
    with file_url() as url, Bus(url) as bus:
        bus.declare(instants)
        command = [sys.executable, "-m", "benchmarks.latency_consumer", url, str(count)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as consumer:
            assert consumer.stdout is not None
            consumer.stdout.readline()  # it says that it consumes
            for _ in range(count):
                bus.publish(instants, time.monotonic())
                time.sleep(0.02)
            return percentiles(json.loads(consumer.stdout.readline())[20:])


def waiting_10_000() -> Sample:
    return _beside(10_000)


def waiting_1_000_000() -> Sample:
    return _beside(1_000_000)


def _beside(waiting: int) -> Sample:
    """Publishing to, then consuming from a queue in which so many wait already."""
    with file_url() as url:
        tally, bus = Tally(), Bus(url)
        bus.on(numbers)(tally.handle)
        with bus:
            bus.declare(numbers)
            _publish_numbers(bus, waiting)
            watch = Stopwatch()
            _publish_numbers(bus, MESSAGES)
            published = watch.sample(MESSAGES)
            watch = Stopwatch()
            with bus.worker(grace=0.0):
                wait_until(lambda: tally.count >= 10_000)
                consumed = watch.sample(tally.count)
    return {f"publish {name}": value for name, value in published.items()} | {
        f"consume {name}": value for name, value in consumed.items()
    }


def _publish_numbers(bus: Bus, count: int) -> None:
    for _ in range(count):
        bus.publish_soon(numbers, SMALL)
    bus.flush(timeout=120)
