"""A running system to torture, and what can be done to it besides killing who uses it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
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
    url = f"sqlite:///{folder / 'torture.db'}?lease=1.0"
    return Arena("sqlite", url, url, 1.0)
