"""What the processes of the tests run; each is started by spawn."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.synchronize import Event
from typing import Any

from sqlite_station import QUEUE, Station, message, take

from mqkit._clock import SystemClock
from mqkit._url import Url
from mqkit.backends.base import Address, Declaration, Done, Received, Release, Settlement
from mqkit.backends.sqlite import SqliteBackend
from mqkit.errors import MqkitError
from tests.journal import Journal

RESULTS = Address("queue", "results")


def judge(deliveries: list[Received], failures: float, ordered: bool, chance: random.Random) -> list[Settlement]:
    """Move each message to the results, or fail it; with a failed one the rest of its key goes back too."""
    verdicts: list[Settlement] = []
    failed: set[str | None] = set()
    for each in deliveries:
        if ordered and each.key in failed:
            verdicts.append(Release(each))
        elif chance.random() < failures:
            failed.add(each.key)
            verdicts.append(Release(each, after=chance.random() * 0.02, attempt=each.attempt + 1, since=1.0))
        else:
            copy = message(RESULTS, each.id, key=each.key, body=b"%d" % each.attempt)
            verdicts.append(Done(each, [copy]))
    return verdicts


def consume(path: str, source: Declaration, failures: float, seed: int, options: dict[str, Any]) -> None:
    """Until it is killed."""
    station = Station(path, **options)
    receiver = station.backend.receiver(source, 50)
    chance = random.Random(seed)
    while True:
        turn = receiver.receive(chance.randint(1, 50), 1.0)
        receiver.settle(judge(list(turn.deliveries), failures, source.order == "key", chance))


def hold(path: str, source: Declaration, count: int, holding: Event, options: dict[str, Any]) -> None:
    """Take messages and never say a word about them."""
    station = Station(path, **options)
    receiver = station.backend.receiver(source, count)
    if len(take(receiver, count)) == count:
        holding.set()
    while True:
        receiver.receive(0, 10.0)


def hold_until_killed(path: str) -> None:
    """As `hold`, for a process that is started by a command: a line says that it has taken a message."""
    station = Station(path)
    receiver = station.backend.receiver(station.declare(QUEUE), 1)
    assert len(take(receiver, 1)) == 1
    print("holding", flush=True)
    while True:
        receiver.receive(0, 10.0)


def hold_alone(path: str, source: Declaration, holding: Event, options: dict[str, Any]) -> None:
    """Take one message, say that it runs alone, and hang."""
    station = Station(path, **options)
    receiver = station.backend.receiver(source, 1)
    [delivery] = take(receiver, 1)
    receiver.isolate(delivery)
    holding.set()
    while True:
        receiver.receive(0, 10.0)


def open_and_publish(path: str, number: int, start: Event) -> None:
    """As one of many that meet a file nobody has opened before."""
    start.wait(30.0)
    station = Station(path)
    station.declare(QUEUE)
    station.publish(QUEUE, *(f"{number}-{each}" for each in range(20)))
    station.close()


def publish_when_told(path: str, tell: Any, answers: Any) -> None:
    """Publish one message per request and answer with the time its publish began."""
    station = Station(path)
    station.declare(QUEUE)
    answers.put(0.0)
    while (id := tell.get()) is not None:
        begun = time.monotonic()
        station.publish(QUEUE, id)
        answers.put(begun)
    station.close()


def keep_locked(path: str, locked: Event, release: Event) -> None:
    """A foreign program that knows nothing of turns."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    locked.set()
    release.wait(60.0)
    db.execute("ROLLBACK")


def publish_until_killed(path: str, seen: str) -> None:
    """Note each id once its publish has returned."""
    station = Station(path)
    station.declare(QUEUE)
    journal = Journal(seen)
    for number in range(1_000_000):
        id = f"{os.getpid()}-{number}"
        station.publish(QUEUE, id)
        journal.write(id)


@contextmanager
def breaking_off(path: str) -> Iterator[None]:
    """No write of this process reaches beyond the end of the write-ahead log, as on a disk that fails."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size + 1000, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def work_on_a_failing_disk(path: str, answers: Any) -> None:
    """Publish and settle over and over, every other time with a COMMIT that breaks off; answer with what was said."""
    station = Station(path)
    source = station.declare(QUEUE)
    published: dict[str, str] = {}
    settled: dict[str, str] = {}
    for number in range(20):
        broken = breaking_off(path) if number % 2 else nullcontext()
        outcomes = station.outcomes(message(QUEUE, f"kept {number}"), message(QUEUE, f"settled {number}"))
        assert set(outcomes.values()) == {None}
        published |= dict.fromkeys(outcomes, "yes")
        receiver = station.backend.receiver(source, 1000)
        held = take(receiver, 1000, timeout=0.2)
        with broken:
            for id, error in station.outcomes(message(QUEUE, f"during {number}")).items():
                published[id] = type(error).__name__ if error else "yes"
            mine = [each for each in held if each.id.startswith("settled")]
            receiver.settle([Done(each) for each in mine])
            try:
                receiver.flush(5.0)
                settled |= {each.id: "yes" for each in mine}
            except MqkitError as exc:
                settled |= {each.id: type(exc).__name__ for each in mine}
        receiver.close()
    station.close()
    answers.put((published, settled))


def open_with_few_descriptors(path: str, answers: Any) -> None:
    """What opening raises with ever more free descriptors, and how many stay open afterwards."""
    Station(path).close()
    backend = SqliteBackend(Url.parse(f"sqlite:///{path}"), SystemClock())
    before = len(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    kinds = []
    for spare in range(16):
        resource.setrlimit(resource.RLIMIT_NOFILE, (before - 1 + spare, hard))
        try:
            backend.publisher().close()
            kinds.append("opened")
        except Exception as exc:
            kinds.append(type(exc).__name__)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    answers.put((kinds, len(os.listdir("/proc/self/fd")) - before))
