"""Attempt: what a trace shows of one try. Tally: what became of deliveries, counted, and traced where somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from mqkit.message import Delivery

AttemptOutcome = Literal["done", "retry", "dead", "released", "skipped", "failed"]


class Attempt(msgspec.Struct, frozen=True):
    """One attempt as a trace shows it. `at` is the backend's clock; `error` what was raised, or None."""

    message_id: str
    destination: str
    group: str | None
    attempt: int
    at: float
    outcome: AttemptOutcome
    error: BaseException | None


class Counts(msgspec.Struct):
    """What became of deliveries since the consumer started."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0
    skipped: int = 0
    failed: int = 0  # live or at most once: gone
    stale: int = 0  # verdicts for deliveries that were not ours any more


class Tally:
    """Keeps the counts of one consumer. Used by its thread; the counts are read from any."""

    def __init__(self, now: Callable[[], float], observe: Callable[[Attempt], None] | None) -> None:
        self.counts = Counts()
        self.observed = observe is not None
        self._observe = observe
        self._now = now

    def note(self, delivery: Delivery[Any], outcome: AttemptOutcome, error: BaseException | None) -> None:
        counts = self.counts
        if outcome == "done":
            counts.done += 1
        elif outcome == "retry":
            counts.retried += 1
        elif outcome == "dead":
            counts.dead += 1
        elif outcome == "released":
            counts.released += 1
        elif outcome == "skipped":
            counts.skipped += 1
        else:
            counts.failed += 1
        self.trace(delivery, outcome, error)

    def trace(self, delivery: Delivery[Any], outcome: AttemptOutcome, error: BaseException | None) -> None:
        if self._observe is not None:
            attempt, source = delivery.attempt, delivery.destination.name
            self._observe(Attempt(delivery.id, source, delivery.group, attempt, self._now(), outcome, error))
