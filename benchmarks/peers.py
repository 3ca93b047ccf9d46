"""Huey and kombu on a SQLite file of their own, synced like ours, used as their documentation shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huey import SqliteHuey
from kombu import Connection
from sqlalchemy import Engine, event

from benchmarks.folder import folder
from benchmarks.sample import LARGE, Sample, Stopwatch

HUEY_MESSAGES, KOMBU_MESSAGES = 3_000, 500  # few: one wait for the disk and more for each


def huey_publish() -> Sample:
    with _huey() as (_, task, _handled):
        return _enqueue(task)


def huey_consume() -> Sample:
    """What its worker does, in one thread: dequeue, which deletes (so it is at most once), and execute."""
    with _huey() as (huey, task, handled):
        _enqueue(task)
        watch = Stopwatch()
        while (next_one := huey.dequeue()) is not None:
            huey.execute(next_one)
        if len(handled) != HUEY_MESSAGES:
            raise ValueError(f"{len(handled)} of {HUEY_MESSAGES} were handled")
        return watch.sample(HUEY_MESSAGES)


@contextmanager
def _huey() -> Iterator[tuple[Any, Any, list[Any]]]:
    with folder() as here:
        huey = SqliteHuey(filename=str(here / "huey.db"), fsync=True, results=False)
        handled: list[Any] = []
        yield huey, huey.task()(handled.append), handled
        huey.storage.close()


def _enqueue(task: Any) -> Sample:
    watch = Stopwatch()
    for _ in range(HUEY_MESSAGES):
        task(LARGE)
    return watch.sample(HUEY_MESSAGES)


def kombu_publish() -> Sample:
    with _kombu() as queue:
        return _put(queue)


def kombu_consume() -> Sample:
    with _kombu() as queue:
        _put(queue)
        watch = Stopwatch()
        for _ in range(KOMBU_MESSAGES):
            message = queue.get(timeout=10)
            assert message.payload
            message.ack()
        return watch.sample(KOMBU_MESSAGES)


@contextmanager
def _kombu() -> Iterator[Any]:
    """Its transport leaves SQLite's settings alone, so WAL and FULL are set where SQLAlchemy connects."""
    event.listen(Engine, "connect", _durable)
    with folder() as here, Connection(f"sqla+sqlite:///{here}/kombu.db") as connection:
        queue = connection.SimpleQueue("documents")
        yield queue
        queue.close()


def _durable(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _put(queue: Any) -> Sample:
    watch = Stopwatch()
    for _ in range(KOMBU_MESSAGES):
        queue.put(LARGE, serializer="json")
    return watch.sample(KOMBU_MESSAGES)
