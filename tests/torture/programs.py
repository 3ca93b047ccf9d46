"""The processes that are tortured: `python -m tests.torture.programs publish|consume URL JOURNAL`, until SIGTERM."""

from __future__ import annotations

import _thread
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import Future
from contextlib import suppress

from mqkit import Bus, Delivery, Queue, Retry, fixed
from mqkit.errors import MqkitError, PublishUnknown
from tests.journal import Journal
from tests.torture import mutants

numbers = Queue("tortured", str)
receipts = Queue("receipts", str)  # one is staged by each handler that succeeds

AHEAD = 50  # messages a publisher has under way at once
HOLD = os.environ.get("MQKIT_HOLD", "")  # the path of a file; while it is there, publishers begin nothing new
PACE = float(os.environ.get("MQKIT_PACE", "0.002"))  # seconds between two of them: thousands are enough
WORK = 0.006  # seconds a handler takes, half before its work counts as done and half after, so that kills meet both
SLOW = 0.01  # share of handlings that take long, so that kills meet some whose neighbours are done
LONG = 0.3  # seconds: those
FLAKY = 0.05  # share of attempts that fail
AGAIN = 0.2  # seconds before a message is sent again


class Publisher:
    """Sends numbered messages and each again, under its id, until the broker has confirmed it or the end has come."""

    def __init__(self, bus: Bus, journal: Journal, stop: threading.Event) -> None:
        self._bus = bus
        self._journal = journal
        self._stop = stop
        self._under_way: list[tuple[str, Future[str]]] = []
        self._again: list[tuple[float, str]] = []

    def run(self) -> None:
        count = 0
        while not self._stop.wait(PACE):
            if self._again and self._again[0][0] <= time.monotonic():
                self._send(self._again.pop(0)[1])
            elif not os.path.exists(HOLD):
                count += 1
                self._send(f"{os.getpid()}-{count}")
            self._collect(AHEAD)
        give_up = time.monotonic() + 20.0
        while (self._again or self._under_way) and time.monotonic() < give_up:
            for _, id in self._again:
                self._send(id)
            self._again.clear()
            self._collect(0)

    def _send(self, id: str) -> None:
        self._journal.write("try", id)
        try:
            self._under_way.append((id, self._bus.publish_soon(numbers, id, id=id)))
        except MqkitError:
            self._journal.write("refused", id)
            self._again.append((time.monotonic() + AGAIN, id))

    def _collect(self, most: int) -> None:
        """Note outcomes; wait for the oldest while more than `most` are under way."""
        while self._under_way and (len(self._under_way) > most or self._under_way[0][1].done()):
            id, future = self._under_way.pop(0)
            try:
                future.result(10.0)
                self._journal.write("ok", id)
                continue
            except (PublishUnknown, TimeoutError):
                self._journal.write("unknown", id)
            except MqkitError:
                self._journal.write("refused", id)
            self._again.append((time.monotonic() + AGAIN, id))


def publish(url: str, journal: Journal) -> None:
    bus, stop = Bus(url), threading.Event()
    # Not set by the handler itself, which may interrupt `stop.wait` where it holds the lock that `set` waits for.
    signal.signal(signal.SIGTERM, lambda *_: _thread.start_new_thread(stop.set, ()))
    Publisher(bus, journal, stop).run()
    with suppress(MqkitError):  # every outcome is in the journal already
        bus.close()


def consume(url: str, journal: Journal) -> None:
    bus, chance = Bus(url), random.Random()

    @bus.on(numbers, concurrency=4, retry=Retry(attempts=None, backoff=fixed(0.05), crashes=1000))
    def handle(id: str, delivery: Delivery[str]) -> None:
        time.sleep(LONG if chance.random() < SLOW else WORK / 2)
        if chance.random() < FLAKY:
            raise ConnectionError("the dependency is flaky")
        delivery.publish(receipts, id)
        journal.write("done", id, hand_outs(delivery), os.getpid())
        time.sleep(WORK / 2)

    @bus.on(receipts, concurrency=4, retry=Retry(attempts=None, crashes=1000))
    def note(id: str) -> None:
        journal.write("receipt", id)

    bus.run(grace=5.0)


def hand_outs(delivery: Delivery[str]) -> int:
    """
    1 for a message that nobody can have had before.

    Where the system does not count, a death since the last verdict is the mark of a repetition, or that this is the copy
    of a failed try: its original comes again beside it when the connection broke between the two.
    """
    if delivery.deliveries is not None:
        return delivery.deliveries
    return delivery._received.lost + delivery.attempt


if __name__ == "__main__":
    program, url, path = sys.argv[1:]
    mutants.infect(os.environ.get("MQKIT_MUTANT", ""))
    {"publish": publish, "consume": consume}[program](url, Journal(path))
