"""Whether the file gives back the space that a backlog took."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_station import QUEUE, Station, done, message

from mqkit.backends.sqlite.file import SHRINK_STEP, SPARE_PAGES, File

BIG = 12_000  # messages of 1 KiB: three pages for every one that may be kept


class Steps:
    """Steps of shrinking: how many pages each of them freed, and what to do right before the next one."""

    def __init__(self) -> None:
        self.freed: list[int] = []
        self.before: Callable[[], None] = lambda: None


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps, shrink = Steps(), File.shrink

    def observed(self: File) -> bool:
        steps.before()
        pages = self.writer.execute("PRAGMA page_count").fetchone()[0]
        more = shrink(self)
        steps.freed.append(pages - self.writer.execute("PRAGMA page_count").fetchone()[0])
        return more

    monkeypatch.setattr(File, "shrink", observed)
    return steps


def fill_and_drain(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    for start in range(0, BIG, 1000):
        station.publish(QUEUE, *(f"m{number}" for number in range(start, start + 1000)), body=b"x" * 1000)
    left = BIG
    while left:
        deliveries = receiver.receive(1000, 5.0).deliveries
        left -= len(deliveries)
        done(receiver, deliveries)


def shrunk(path: Path) -> bool:
    with sqlite3.connect(path) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
    db.close()
    return path.stat().st_size <= (SPARE_PAGES + 300) * size


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_file_shrinks_in_small_steps_after_a_big_backlog_was_consumed(
    station: Station, path: Path, steps: Steps
) -> None:
    fill_and_drain(station)
    assert not shrunk(path)

    wait_until(lambda: shrunk(path))

    assert max(steps.freed) <= SHRINK_STEP + 2  # and the pages that only listed these

    station.publish(QUEUE, "after")
    assert station.depth(QUEUE) == (1, 0, 0)


def test_a_publish_waits_for_one_step_of_shrinking_at_most(station: Station, path: Path, steps: Steps) -> None:
    fill_and_drain(station)
    submitted: list[str] = []
    answered: list[str] = []
    late: list[str] = []

    def publish_meanwhile() -> None:
        answered.extend(token for token, _ in station.publisher.collect(0.0))
        late.extend(set(submitted) - set(answered))
        submitted.append(f"meanwhile {len(submitted)}")
        station.publisher.submit([message(QUEUE, submitted[-1])])

    steps.before = publish_meanwhile
    wait_until(lambda: len(submitted) >= 2)
    steps.before = lambda: None
    wait_until(lambda: shrunk(path))

    assert late == []
