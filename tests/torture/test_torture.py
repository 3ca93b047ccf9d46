"""
Total queue: numbered messages go in while processes, connections and brokers are killed, and at the end each is counted.

`MQKIT_TORTURE_SECONDS` makes it longer and runs every mutant on every backend (`make torture`: 60 seconds);
`MQKIT_TORTURE_SEED` repeats a run.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.torture.arena import Arena, rabbitmq_arena, redis_arena, sqlite_arena
from tests.torture.mutants import MUTANTS
from tests.torture.run import BACKLOG, torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.xdist_group("torture")]

SECONDS = float(os.environ.get("MQKIT_TORTURE_SECONDS", "12"))
EVERYTHING = "MQKIT_TORTURE_SECONDS" in os.environ
SEED = int(os.environ.get("MQKIT_TORTURE_SEED", str(random.randrange(10_000))))
SERVERS = {"redis": redis_arena, "rabbitmq": rabbitmq_arena} if EVERYTHING else {"redis": redis_arena}


@pytest.fixture(params=["sqlite", *SERVERS])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    if request.param == "sqlite":
        yield sqlite_arena(tmp_path)
    else:
        with SERVERS[request.param]() as arena:
            yield arena


def test_nothing_is_lost_or_invented_and_every_repetition_is_explained(arena: Arena, tmp_path: Path):
    print(f"seed {SEED}")
    verdict = torture(arena, tmp_path, seconds=SECONDS, rounds=2, seed=SEED, drain=60.0)

    assert verdict.clean, f"seed {SEED}: {verdict}"
    assert verdict.handled > BACKLOG, f"seed {SEED}: too little was published to prove anything: {verdict}"


def mutants() -> list[tuple[str, str]]:
    """Each where it can show itself; what spoils only the core, on SQLite alone unless everything is asked for."""
    return [
        (backend, name)
        for name, mutant in MUTANTS.items()
        for backend in ("sqlite", *SERVERS)
        if backend in mutant.backends and (backend == "sqlite" or "sqlite" not in mutant.backends or EVERYTHING)
    ]


@pytest.mark.parametrize(("arena", "name"), mutants(), indirect=["arena"])
def test_a_spoilt_mqkit_does_not_survive(arena: Arena, tmp_path: Path, name: str):
    verdict = torture(arena, tmp_path, seconds=0.0, rounds=2, seed=SEED, drain=5.0, mutant=name)

    assert not verdict.clean, f"seed {SEED}: {name} was not noticed: {verdict}"
