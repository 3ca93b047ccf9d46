"""The clock of a file: the time since boot plus an offset kept in the file, so steps of the wall clock never reach it."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # counts suspended time too, where there is one


def since_boot() -> float:
    return time.clock_gettime(BOOT_CLOCK)


def boot_id() -> str:
    """
    Names this boot of this machine; where the system gives no such name, the minute it started.

    Raises `OSError` where it has a name and cannot tell now: another name would say that everybody else is dead.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (FileNotFoundError, PermissionError):
        return f"boot-{round((time.time() - since_boot()) / 60)}"


def choose_offset(wall: float, last: float, boot: float) -> float:
    """For the first opener after a boot: the file's time goes on from the wall clock, but never backwards."""
    return max(wall, last) - boot


class DatabaseClock:
    """Reads like seconds since 1970, is the same in every process of this machine and never steps."""

    def __init__(self, boot: str, offset: float) -> None:
        self.boot = boot
        self._offset = offset

    def now(self) -> float:
        return since_boot() + self._offset


def read_clock(db: sqlite3.Connection | sqlite3.Cursor) -> DatabaseClock | None:
    """The clock of this boot, if somebody has set it."""
    meta = dict(db.execute("SELECT name, value FROM mq_meta WHERE name IN ('boot', 'offset')").fetchall())
    boot = boot_id()
    return DatabaseClock(boot, meta["offset"]) if meta.get("boot") == boot else None


def set_clock(db: sqlite3.Connection) -> DatabaseClock:
    """Begin this boot's clock, inside the caller's transaction."""
    row = db.execute("SELECT value FROM mq_meta WHERE name = 'clock'").fetchone()
    clock = DatabaseClock(boot_id(), choose_offset(time.time(), row[0] if row else 0.0, since_boot()))
    values = [("boot", clock.boot), ("offset", clock._offset), ("clock", clock.now())]
    db.executemany("INSERT OR REPLACE INTO mq_meta VALUES (?, ?)", values)
    return clock
