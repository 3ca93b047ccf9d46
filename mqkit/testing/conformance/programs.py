"""Programs that cases run in processes of their own, because they are killed, frozen or forked."""

from __future__ import annotations

import os
import threading
import time

from mqkit import Bus, Delivery, Queue
from mqkit.errors import MqkitError
from mqkit.testing.conformance.programs_ef import *  # noqa: F403

LOOK = 0.005  # seconds between two looks
REFUSED = 3  # the exit code of a child whose publish was refused


def hold(url: str, name: str, concurrency: str) -> None:
    """Handle and never finish; lines are the numbers begun."""
    bus = Bus(url)

    @bus.on(Queue(name, int), concurrency=int(concurrency))
    def handle(number: int) -> None:
        say(number)
        threading.Event().wait()

    bus.run()


def hold_a_key(url: str, name: str) -> None:
    """As `hold`, where all messages are of one key."""
    bus = Bus(url)

    @bus.on(Queue(name, int, key=lambda _: "one"))
    def handle(number: int) -> None:
        say(number)
        threading.Event().wait()

    bus.run()


def count(url: str, name: str, work: str) -> None:
    """Handle, each for `work` seconds; lines are the numbers finished."""
    bus = Bus(url)

    @bus.on(Queue(name, int), concurrency=4)
    def handle(number: int) -> None:
        time.sleep(float(work))
        say(number)

    bus.run()


def finish_late(url: str, name: str, work: str) -> None:
    """Handle, each for `work` seconds; lines are `begin N` and, when a verdict came too late, `stale`."""
    bus = Bus(url)

    @bus.on(Queue(name, int), concurrency=1)
    def handle(number: int) -> None:
        say("begin", number)
        time.sleep(float(work))

    with bus.worker() as worker:
        [consumer] = worker.consumers
        while not consumer.counts.stale:
            time.sleep(LOOK)
        say("stale")
        threading.Event().wait()


def fork_while_open(url: str, name: str, shared: str) -> None:
    """
    Publish, fork, publish in the child, then in the parent; lines are the child's fate and what the parent reads.

    Args:
        shared: "shared" if the parent sees what the child publishes.
    """
    bus, words = Bus(url), Queue(name, str)
    bus.publish(words, "before")
    child = os.fork()
    if child == 0:
        try:
            bus.publish(words, "child")
            say("child published")
        except MqkitError as exc:
            say("child", type(exc).__name__)
            os._exit(REFUSED)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    bus.publish(words, "after")
    refused = os.waitstatus_to_exitcode(status) == REFUSED
    published = 2 if refused or shared != "shared" else 3
    with bus.subscription(words) as messages:
        read: list[Delivery[str]] = []
        while len(read) < published:
            read += messages.receive(timeout=10.0)
        say("parent", ",".join(sorted(delivery.payload for delivery in read)))
        for delivery in read:
            delivery.ack()
    bus.close()


def say(*words: object) -> None:
    """One line, written by one system call."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())
