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

from tests.torture.arena import (
    Arena,
    kafka_3_arena,
    kafka_4_arena,
    rabbitmq_arena,
    redis_arena,
    sqlite_arena,
    sqs_arena,
)
from tests.torture.mutants import MUTANTS
from tests.torture.run import BACKLOG, torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SECONDS = float(os.environ.get("MQKIT_TORTURE_SECONDS", "12"))
EVERYTHING = "MQKIT_TORTURE_SECONDS" in os.environ
ROUNDS = 2 if EVERYTHING else 1  # of each fault, at least
SEED = int(os.environ.get("MQKIT_TORTURE_SEED", str(random.randrange(10_000))))
SLOW = {"kafka", "sqs"}
SERVERS = {"redis": redis_arena, "rabbitmq": rabbitmq_arena, "kafka": kafka_3_arena, "sqs": sqs_arena}
WITHOUT_MUTANTS = {"kafka_4": kafka_4_arena}


@pytest.fixture(params=["sqlite", *SERVERS, *WITHOUT_MUTANTS])
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Arena]:
    if request.param == "sqlite":
        yield sqlite_arena(tmp_path)
    else:
        with (SERVERS | WITHOUT_MUTANTS)[request.param]() as arena:
            yield arena


def test_nothing_is_lost_or_invented_and_every_repetition_is_explained(arena: Arena, tmp_path: Path):
    print(f"seed {SEED}")
    verdict = torture(arena, tmp_path, seconds=SECONDS, rounds=ROUNDS, seed=SEED, drain=60.0)

    assert verdict.clean, f"seed {SEED}: {verdict}"
    assert verdict.handled > BACKLOG, f"seed {SEED}: too little was published to prove anything: {verdict}"


def mutants() -> list[tuple[str, str]]:
    """
    Each where it can show itself.

    Unless everything is asked for, what spoils the core is tried on SQLite alone, and on a slow server the first that is its
    own.
    """
    found: list[tuple[str, str]] = []
    for name, mutant in MUTANTS.items():
        for backend in ("sqlite", *SERVERS):
            shared = "sqlite" in mutant.backends and backend != "sqlite"
            more = backend in SLOW and (len(mutant.backends) > 1 or any(backend == one for one, _ in found))
            if backend in mutant.backends and (EVERYTHING or not (shared or more)):
                found.append((backend, name))
    return found


@pytest.mark.parametrize(("arena", "name"), mutants(), indirect=["arena"])
def test_a_spoilt_mqkit_does_not_survive(arena: Arena, tmp_path: Path, name: str):
    verdict = torture(arena, tmp_path, seconds=0.0, rounds=2, seed=SEED, drain=5.0, mutant=name)

    assert not verdict.clean, f"seed {SEED}: {name} was not noticed: {verdict}"
