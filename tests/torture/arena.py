"""A running system to torture, and what can be done to it besides killing who uses it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture.crowd import Crowd

Fault = Callable[[Crowd, random.Random], None]


@dataclass
class Arena:
    """
    Attributes:
        url: What the tortured processes connect to; through the fault proxy where there is one.
        quiet_url: Past the proxy, to look on.
        lease: Seconds after which a silent consumer loses what it holds.
        faults: Of the system, by name.
    """

    backend: str
    url: str
    quiet_url: str
    lease: float
    faults: Mapping[str, Fault] = field(default_factory=dict)

    def all_faults(self) -> dict[str, Fault]:
        return {
            "kill a consumer": lambda crowd, chance: crowd.kill_consumer(chance),
            "kill another consumer": lambda crowd, chance: crowd.kill_consumer(chance),
            "stop a consumer": lambda crowd, chance: crowd.stop_consumer(chance),
            "freeze a consumer": lambda crowd, chance: crowd.freeze_consumer(chance, 1.5 * self.lease),
            "kill a publisher": lambda crowd, chance: crowd.kill_publisher(chance),
            **self.faults,
        }


def sqlite_arena(folder: Path) -> Arena:
    path = folder / "torture.db"
    url = f"sqlite:///{path}?lease=1.0"

    def stall(crowd: Crowd, chance: random.Random) -> None:
        """Another program has the file for a moment, and one who waits for it is killed."""
        with closing(sqlite3.connect(path, isolation_level=None, timeout=20.0)) as db:
            db.execute("BEGIN IMMEDIATE")
            crowd.look_on(0.2)
            crowd.kill_publisher(chance)
            crowd.look_on(0.2)
            db.execute("ROLLBACK")

    return Arena("sqlite", url, url, 1.0, {"stall the file": stall})
