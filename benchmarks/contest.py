"""A contest: sides run in turn, each time in a fresh process, and the goals their figures are held against."""

from __future__ import annotations

import json
import operator
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.sample import Sample

LONGEST = 600.0  # seconds one run of one side may take

Runs = dict[str, list[Sample]]  # side to its samples, one per round

_COMBINE: dict[str, Callable[[float, float], float]] = {"ratio": operator.truediv, "difference": operator.sub}
_SIGNS = {"ratio": "/", "difference": "-"}


@dataclass(frozen=True)
class Goal:
    """
    A bound for one measure of one side: of itself, or its ratio to or difference from another side's, round by round.

    Exactly one of `least` and `most` is given.
    """

    side: str
    measure: str
    least: float | None = None
    most: float | None = None
    against: str | None = None
    by: Literal["ratio", "difference"] = "ratio"

    def value(self, runs: Runs) -> float:
        own = [sample[self.measure] for sample in runs[self.side]]
        if self.against is None:
            return statistics.median(own)
        other = [sample[self.measure] for sample in runs[self.against]]
        return statistics.median(map(_COMBINE[self.by], own, other))

    def met(self, runs: Runs) -> bool:
        value = self.value(runs)
        return value >= self.least if self.least is not None else value <= (self.most or 0.0)

    def __str__(self) -> str:
        subject = self.side if self.against is None else f"{self.side} {_SIGNS[self.by]} {self.against}"
        bound = f"at least {self.least:,g}" if self.least is not None else f"at most {self.most:,g}"
        return f"{subject}, {self.measure}: {bound}"


@dataclass(frozen=True)
class Contest:
    """
    Args:
        sides: Name to a function at module level that takes nothing and returns a sample. The first is the base of ratios.
        notes: What a reader must know to judge the figures.
    """

    name: str
    sides: dict[str, Callable[[], Sample]]
    goals: tuple[Goal, ...] = ()
    notes: str = ""
    failures: list[str] = field(default_factory=list, compare=False)

    def run(self, rounds: int, progress: Callable[[str], None]) -> Runs:
        """Every side once per round, each round beginning with another. A round with a failed side counts for nobody."""
        runs: Runs = {side: [] for side in self.sides}
        for number in range(rounds):
            samples: dict[str, Sample] = {}
            for side in rotated(list(self.sides), number):
                progress(f"{self.name}, round {number + 1} of {rounds}: {side}")
                try:
                    samples[side] = in_fresh_process(self.sides[side])
                except (subprocess.SubprocessError, ValueError) as exc:
                    self.failures.append(f"{side}: {exc}")
            if len(samples) == len(self.sides):
                for side, sample in samples.items():
                    runs[side].append(sample)
        return runs


def rotated(sides: list[str], by: int) -> list[str]:
    """A B C, B C A, C A B: what a neighbour on the machine does hits every side alike."""
    by %= len(sides)
    return sides[by:] + sides[:by]


def in_fresh_process(side: Callable[[], Sample]) -> Sample:
    """
    Raises:
        SubprocessError: It took too long. ValueError: It failed; the text has the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.side", side.__module__, side.__name__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST)
    if done.returncode:
        raise ValueError(" | ".join(done.stderr.strip().splitlines()[-2:]) or f"exit status {done.returncode}")
    sample: Sample = json.loads(done.stdout.splitlines()[-1])
    return sample
