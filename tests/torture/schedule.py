"""When which fault strikes. Pure: the same seed gives the same schedule."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple


class Strike(NamedTuple):
    at: float  # seconds from the start
    fault: str


def schedule(seed: int, seconds: float, faults: Sequence[str], every: float) -> list[Strike]:
    """
    Each fault in turn, in an order that is drawn anew for each round, `every` seconds apart give or take a half.

    The first second and the last are left in peace: work must have begun, and must be able to end.
    """
    chance = random.Random(seed)
    strikes: list[Strike] = []
    at, waiting = 1.0, []
    while at < seconds - 1.0:
        if not waiting:
            waiting = chance.sample(list(faults), len(faults))
        strikes.append(Strike(at, waiting.pop()))
        at += every * chance.uniform(0.5, 1.5)
    return strikes
