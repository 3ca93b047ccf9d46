"""One torture from start to verdict."""

from __future__ import annotations

import random
import time
from pathlib import Path

from mqkit import Bus
from tests.torture.arena import Arena
from tests.torture.crowd import Crowd
from tests.torture.history import History, Verdict
from tests.torture.programs import numbers, receipts
from tests.torture.schedule import schedule

PUBLISHERS, CONSUMERS = 2, 3


def torture(arena: Arena, folder: Path, *, seconds: float, seed: int, drain: float, mutant: str = "") -> Verdict:
    """
    Args:
        seconds: How long messages are published and faults strike.
        drain: Seconds the consumers have afterwards, undisturbed, to handle what is left.
    """
    journal, chance = folder / "journal", random.Random(seed)
    faults = arena.all_faults()
    bus = Bus(arena.quiet_url)
    bus.declare(numbers, receipts)
    began = time.monotonic()
    crowd = Crowd(arena.url, journal, publishers=PUBLISHERS, consumers=CONSUMERS, seconds=seconds, mutant=mutant)
    try:
        for strike in schedule(seed, seconds, list(faults), every=seconds / (2 * len(faults))):
            crowd.look_on(max(0.0, began + strike.at - time.monotonic()))
            faults[strike.fault](crowd, chance)
            crowd.replace_dead()
        crowd.wait_publishers(within=max(0.0, began + seconds - time.monotonic()) + 60.0)
        deadline = time.monotonic() + drain
        while _left(bus) and time.monotonic() < deadline:
            crowd.replace_dead()
            crowd.look_on(0.05)
    finally:
        crowd.close()
    dead = [letter.id for queue in (numbers, receipts) for letter in bus.dead_letters(queue).list(limit=10_000)]
    bus.close()
    return History.of(journal.read_text().splitlines()).verdict(dead)


def _left(bus: Bus) -> int:
    names = {numbers.name, receipts.name}
    admin = bus._opened_backend().admin()
    try:
        return sum(
            depth.ready + depth.inflight + depth.delayed
            for depth in admin.describe()
            if depth.address.name in names and not depth.address.dead
        )
    finally:
        admin.close()
