"""One torture from start to verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from mqkit import Bus
from tests.journal import Journal
from tests.torture.arena import Arena
from tests.torture.crowd import Crowd
from tests.torture.history import History, Verdict
from tests.torture.programs import numbers, receipts

PUBLISHERS, CONSUMERS = 2, 3
BETWEEN = 150  # messages handled between two faults
LONGEST = 300.0  # seconds they have to handle what is left, at most
BACKLOG = 1000  # messages that wait at the start, so that consumers hold more than they work at


def torture(
    arena: Arena, folder: Path, *, seconds: float, rounds: int, seed: int, drain: float, mutant: str = ""
) -> Verdict:
    """
    Args:
        seconds: How long faults strike, at least.
        rounds: How often each fault strikes, at least.
        drain: Seconds without a sign of life, afterwards, after which nothing more is expected of consumers.
    """
    journal, chance = folder / "journal", random.Random(seed)
    faults = arena.all_faults()
    bus = Bus(arena.quiet_url)
    bus.declare(numbers, receipts)
    fill(bus, Journal(str(journal)))
    until, left = time.monotonic() + seconds, rounds * len(faults)
    crowd = Crowd(arena.url, journal, publishers=PUBLISHERS, consumers=CONSUMERS, pace=arena.pace, mutant=mutant)
    try:
        for name in in_turn(list(faults), chance):
            if left <= 0 and time.monotonic() > until:
                break
            left -= 1
            crowd.wait_for_work(BETWEEN, within=15.0 * arena.slowness)  # not for time: a slow machine proves as much
            faults[name](crowd, chance)
        crowd.stop_publishers()
        deadline = time.monotonic() + LONGEST
        while not _over(bus, journal) and crowd.watch.silence < drain * arena.slowness and time.monotonic() < deadline:
            crowd.look_on(0.05)
    finally:
        crowd.close()
    verdict = _verdict(bus, journal)
    bus.close()
    return verdict


def in_turn(names: list[str], chance: random.Random) -> Iterator[str]:
    """Each in turn, for ever, in an order drawn anew for each round."""
    while True:
        yield from chance.sample(names, len(names))


def fill(bus: Bus, journal: Journal) -> None:
    for number in range(BACKLOG):
        id = f"waiting-{number}"
        journal.write("try", id)
        bus.publish_soon(numbers, id, id=id)
    bus.flush()
    for number in range(BACKLOG):
        journal.write("ok", f"waiting-{number}")


def _over(bus: Bus, journal: Path) -> bool:
    """
    Everything has arrived, and nothing is there to arrive once more.

    Depths alone do not say so: what moves while they are counted can be overlooked.
    """
    verdict = _verdict(bus, journal)
    return not verdict.lost and not verdict.unpaid and not _left(bus)


def _verdict(bus: Bus, journal: Path) -> Verdict:
    dead = [letter.id for queue in (numbers, receipts) for letter in bus.dead_letters(queue).list(limit=10_000)]
    return History.of(journal.read_text().splitlines()).verdict(dead)


def _left(bus: Bus) -> int:
    names = {numbers.name, receipts.name}
    admin = bus.link.backend.admin()
    try:
        return sum(
            depth.ready + depth.inflight + depth.delayed
            for depth in admin.describe()
            if depth.address.name in names and not depth.address.dead
        )
    finally:
        admin.close()
