"""The figures of a contest as text."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.contest import Contest, Runs


def table(contest: Contest, runs: Runs) -> Iterator[str]:
    """Medians with the lowest and highest round, and each side's ratio to the first one, round by round."""
    yield f"\n{contest.name}"
    if contest.notes:
        yield f"  {contest.notes}"
    base = next(iter(runs.values()))
    width = max(map(len, runs))
    for measure in base[0] if base else ():
        yield f"  {measure}"
        for side, samples in runs.items():
            values = [sample[measure] for sample in samples]
            ratio = statistics.median(
                sample[measure] / other[measure] for sample, other in zip(samples, base, strict=True)
            )
            yield (
                f"    {side:{width}}  {_short(statistics.median(values)):>10}  "
                f"({_short(min(values))} to {_short(max(values))})  {ratio:>8.2f} x"
            )
    for goal in contest.goals if base else ():
        yield f"  {'met   ' if goal.met(runs) else 'MISSED'}  {goal}; it is {_short(goal.value(runs))}"
    for failure in contest.failures:
        yield f"  FAILED  {failure}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
