"""Somebody else empties the write-ahead log while messages pass through it."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest

from mqkit import Bus, Queue
from tests.unit.waiting import until

CHECKPOINTS, AT_ONCE, MOST = 50, 100, 100_000
BREATH = 0.001  # seconds between two checkpoints, so that others get the lock too

numbers = Queue("numbers", int)


@pytest.mark.parametrize("mode", ["PASSIVE", "RESTART", "TRUNCATE"])
def test_checkpoints_under_load_lose_and_repeat_nothing(tmp_path: Path, mode: str) -> None:
    path, ends = tmp_path / "app.db", threading.Event()
    seen: Counter[int] = Counter()
    through = sent = 0

    def empty_the_log() -> None:
        nonlocal through
        db = sqlite3.connect(path, timeout=10.0)
        while not ends.wait(BREATH):
            busy, _, _ = db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            through += not busy
        db.close()

    with Bus(f"sqlite:///{path}") as bus:
        bus.on(numbers)(lambda number: seen.update([number]))
        bus.declare(numbers)
        emptier = threading.Thread(target=empty_the_log, daemon=True)
        emptier.start()
        try:
            with bus.worker():
                while through < CHECKPOINTS:
                    assert sent < MOST
                    for number in range(sent, sent + AT_ONCE):
                        bus.publish_soon(numbers, number)
                    bus.flush(timeout=60.0)
                    sent += AT_ONCE
                until(lambda: len(seen) == sent, within=60.0)
        finally:
            ends.set()
            emptier.join(20.0)

    assert seen == Counter(range(sent))
