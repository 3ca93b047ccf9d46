"""
Total queue: numbered messages go in while processes, connections and brokers are killed, and at the end each is counted.

`MQKIT_TORTURE_SECONDS` makes it longer (`make torture`: 60), `MQKIT_TORTURE_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.torture.arena import Arena, sqlite_arena
from tests.torture.mutants import MUTANTS
from tests.torture.run import torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("torture")]

SECONDS = float(os.environ.get("MQKIT_TORTURE_SECONDS", "12"))
SEED = int(os.environ.get("MQKIT_TORTURE_SEED", str(random.randrange(10_000))))


@pytest.fixture(params=["sqlite"])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Arena:
    return sqlite_arena(tmp_path)


def test_nothing_is_lost_or_invented_and_every_repetition_is_explained(arena: Arena, tmp_path: Path):
    print(f"seed {SEED}")
    verdict = torture(arena, tmp_path, seconds=SECONDS, seed=SEED, drain=60.0)

    assert verdict.clean, f"seed {SEED}: {verdict}"
    assert verdict.handled > 100 * SECONDS, f"seed {SEED}: too little was published to prove anything: {verdict}"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_spoilt_mqkit_does_not_survive(arena: Arena, tmp_path: Path, name: str):
    mutant = MUTANTS[name]
    if arena.backend not in mutant.backends:
        pytest.skip(f"{name} needs a broker that can be lost, which {arena.backend} is not")

    verdict = torture(arena, tmp_path, seconds=8.0, seed=SEED, drain=5.0, mutant=name)

    assert getattr(verdict, mutant.finding), f"seed {SEED}: {name} was not noticed: {verdict}"
