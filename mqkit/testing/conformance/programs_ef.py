"""
Programs that cases start as processes of their own, to be killed, stopped or run side by side.

Each writes one line per event with a single system call, so that a line is whole even if the process dies right after it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass

from mqkit import Bus, Delivery, Queue, Retry, Topic, fixed
from mqkit._topology import source_declaration
from mqkit.backends.base import Received, Receiver, Release
from mqkit.errors import MqkitError

__all__ = [
    "Step",
    "begin_and_wait",
    "consume_keyed",
    "consume_keyed_poison",
    "consume_poison",
    "declare_everything",
    "fail_and_wait",
    "hold_alone",
    "hold_the_interpreter",
    "open_without",
    "numbered",
    "partitioned",
    "publish_delayed",
    "publish_partitioned",
    "replay_slowly",
    "run_until_signal",
    "steps",
    "sums_in",
]

WORK = 0.002  # seconds a handler is at work, so that kills meet handlers that run


@dataclass(frozen=True, order=True)
class Step:
    """The number-th message of a key."""

    key: str
    number: int


def steps(name: str) -> Queue[Step]:
    return Queue(name, Step, key=lambda step: step.key)


def partitioned(name: str, partitions: int) -> Queue[Step]:
    return Queue(name, Step, key=lambda step: step.key, partitions=partitions)


def numbered(name: str) -> Queue[int]:
    """Numbers of three keys."""
    return Queue(name, int, key=lambda number: str(number % 3))


def publish_partitioned(url: str, name: str, partitions: str, keys: str) -> None:
    """Publish one message of each key, and say so."""
    bus = Bus(url)
    bus.publish_many(partitioned(name, int(partitions)), [Step(f"key {key}", 1) for key in range(int(keys))])
    bus.close()
    _say("published")


def fail_and_wait(url: str, name: str, backoff: str) -> None:
    """Fail every attempt of three; lines are its number."""
    bus = Bus(url)

    @bus.on(Queue(name, str), retry=Retry(attempts=3, backoff=fixed(float(backoff))))
    def handle(word: str, delivery: Delivery[str]) -> None:
        _say("attempt", delivery.attempt)
        raise ConnectionError(word)

    bus.run()


def consume_keyed(url: str, name: str) -> None:
    """Handle in order of the key, with a dependency that fails now and then; lines are `nanoseconds key number`."""
    bus = Bus(url)

    @bus.on(steps(name), concurrency=8, retry=Retry(attempts=None, backoff=fixed(0.02)))
    def handle(step: Step) -> None:
        _say(time.monotonic_ns(), step.key, step.number)  # one clock for all processes of a machine
        time.sleep(WORK)
        if random.random() < 0.2:
            raise ConnectionError("the dependency is flaky")

    bus.run()


def begin_and_wait(url: str, name: str) -> None:
    """Begin one message of each key, with the later ones in hand, and end none; lines are `key number`."""
    bus = Bus(url)

    @bus.on(steps(name), concurrency=8, retry=Retry(crashes=100))
    def handle(step: Step) -> None:
        _say(step.key, step.number)
        threading.Event().wait()

    bus.run()


def consume_poison(url: str, name: str, poison: str) -> None:
    """Die of one message, as a fault in native code would; lines are the numbers handled."""
    bus = Bus(url)

    @bus.on(Queue(name, int), concurrency=4, retry=Retry(crashes=2))
    def handle(number: int) -> None:
        if number == int(poison):
            os.kill(os.getpid(), signal.SIGKILL)
        _say(number)

    bus.run()


def consume_keyed_poison(url: str, name: str, poison: str) -> None:
    """As `consume_poison`, in order of the key."""
    bus = Bus(url)

    @bus.on(numbered(name), concurrency=4, retry=Retry(crashes=2))
    def handle(number: int) -> None:
        if number == int(poison):
            os.kill(os.getpid(), signal.SIGKILL)
        _say(number)

    bus.run()


def hold_alone(url: str, name: str, body: str) -> None:
    """Take one message, whatever is before it, note that it runs alone, say so, and stay."""
    receiver = receiver_of(Bus(url), name)
    delivery = take_one(receiver, body.encode(), within=20.0)
    receiver.flush(5.0)
    receiver.isolate(delivery)
    _say("alone")
    while True:
        receiver.receive(0, 10.0)


def receiver_of(bus: Bus, name: str) -> Receiver:
    """At the seam below the core: who tests what a backend keeps must not have the core conclude from it."""
    backend = bus.link.backend
    return backend.receiver(source_declaration(Queue(name, int), None, backend.capabilities.name), 10)


def take_one(receiver: Receiver, body: bytes, within: float) -> Received:
    """The message with this body; what else comes is given back. `TimeoutError`: it does not come."""
    deadline = time.monotonic() + within
    found: list[Received] = []
    while not found:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{body!r} has not come within {within:g} s")
        deliveries = receiver.receive(10, 0.1).deliveries
        found += [delivery for delivery in deliveries if delivery.body == body]
        receiver.settle([Release(delivery) for delivery in deliveries if delivery.body != body])
    return found[0]


def publish_delayed(url: str, name: str, delay: str) -> None:
    """Publish one message, say so, and stay."""
    bus = Bus(url)
    bus.publish(Queue(name, str), "later", delay=float(delay))
    _say("published")
    threading.Event().wait()


def replay_slowly(url: str, name: str, rate: str) -> None:
    """Replay all dead letters of a queue, and say when the first is in the queue again."""
    bus, numbers = Bus(url), Queue(name, int)
    letters = bus.dead_letters(numbers)
    threading.Thread(target=letters.replay, kwargs={"rate": float(rate)}, daemon=True).start()
    admin = bus.link.backend.admin()
    while not admin.count(numbers.address):  # a look at the dead letters would keep them from the replay
        time.sleep(WORK)
    _say("begun")
    threading.Event().wait()


def run_until_signal(url: str, name: str, work: str) -> None:
    """Handle one message at a time, each for `work` seconds; lines are `begin N` and `end N`, the last one `stopped`."""
    bus = Bus(url)

    @bus.on(Queue(name, int), concurrency=1)
    def handle(number: int) -> None:
        _say("begin", number)
        time.sleep(float(work))
        _say("end", number)

    bus.run()
    _say("stopped")


def hold_the_interpreter(url: str, name: str, seconds: str, go: str = "") -> None:
    """
    Handle one message at a time, "heavy" with a single native call of that many seconds, during which no other thread runs.

    With `go` it opens its bus, says so, and begins as soon as that file is there.
    """
    bus = Bus(url)
    size = sums_in(float(seconds))

    @bus.on(Queue(name, str), concurrency=1)
    def handle(word: str, delivery: Delivery[str]) -> None:
        _say("begin", word, delivery.attempt)
        if word == "heavy":
            sum(range(size))
        _say("end", word)

    if go:
        bus.open()
        _wait_for(go)
    bus.run()


def declare_everything(url: str, stem: str, go: str) -> None:
    """Declare a queue, a keyed queue and a topic with two groups, twice, as soon as the file `go` is there."""
    _wait_for(go)
    for _ in range(2):
        bus = Bus(url)
        bus.declare(Queue(f"{stem}-q"), Queue(f"{stem}-k", str, key=str), Topic(f"{stem}-t", groups=["a", "b"]))
        bus.close()
        _say("declared")


def open_without(url: str, module: str) -> None:
    """Open a bus where this module is not installed; the line is the error's class and text."""
    sys.modules[module] = None  # type: ignore[assignment]  # how the import system says that there is none
    try:
        Bus(url).open()
    except MqkitError as exc:
        _say(type(exc).__name__, exc)


def _wait_for(go: str) -> None:
    _say("ready")
    while not os.path.exists(go):
        time.sleep(WORK)


def sums_in(seconds: float) -> int:
    """How many numbers `sum(range(n))`, which lets no other thread run, adds up in that time, here and now."""
    began = time.perf_counter()
    sum(range(1_000_000))
    return int(1_000_000 * seconds / (time.perf_counter() - began))


def _say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
