"""
Ledger: what became of the records of one partition that this process took, and its form as commit metadata; pure.

A commit says only "everything below this offset is done". What is done above it, and what was in hand or waiting for a retry,
is written beside it, as text that the broker keeps with the offset. So a partition is worked on out of order, and whoever
takes it over repeats nothing that was settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Literal, NamedTuple

import msgspec

LIMIT = 4096  # bytes the broker takes, `offset.metadata.max.bytes`


class Position(NamedTuple):
    """What is committed: an offset, and the text beside it."""

    offset: int
    metadata: str


class Held(NamedTuple):
    """
    A record that was handed out and is not done.

    Attributes:
        parked: It waits for its next attempt, until `due`.
    """

    lost: int = 0
    solo: int = 0
    attempt: int = 0  # 0: as its envelope says
    since: float = 0.0
    due: float = 0.0
    parked: bool = False


_IN_HAND = Held()


class _Run(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    """Neighbours that share a fate. Between `first` and `last`, counted from the commit, there may be no other record."""

    first: int
    last: int
    held: bool = False  # else done
    lost: int = 0
    solo: int = 0
    attempt: int = 0
    since: float = 0.0
    due: float = 0.0
    parked: bool = False


class Past(NamedTuple):
    """What an earlier holder left: ranges of offsets that are done, and what it held; nothing at `end` or behind it."""

    done: list[tuple[int, int]]
    held: list[tuple[int, int, Held]]
    end: int = 0

    def is_done(self, offset: int) -> bool:
        return any(first <= offset <= last for first, last in self.done)

    def of(self, offset: int) -> Held | None:
        """How it was held when its last holder wrote; None if it was not."""
        return next((held for first, last, held in self.held if first <= offset <= last), None)


class Ledger:
    """
    Offsets have gaps, which transactions and compaction leave, so none is ever reached by counting.

    Args:
        base: The committed offset.
        past: What was written beside it.
    """

    def __init__(self, base: int, past: Past) -> None:
        self.past = past
        self._base = base
        self._next = base  # behind the last one taken
        self._order: deque[int] = deque()  # taken and not below the base, ascending
        self._done: set[int] = set()
        self._held: dict[int, Held] = {}

    def copy(self) -> Ledger:
        other = Ledger(self._base, self.past)
        other._next, other._order, other._done = self._next, self._order.copy(), self._done.copy()
        other._held = self._held.copy()
        return other

    @property
    def base(self) -> int:
        return self._base

    @property
    def width(self) -> int:
        """How many records the base is behind."""
        return len(self._order)

    @property
    def last(self) -> int:
        """The last offset that was taken or passed over."""
        return self._next - 1

    @property
    def held(self) -> int:
        return len(self._held)

    def take(self, offset: int) -> Held | None:
        """
        The next record in line is handed out. None: it was done by an earlier holder, pass it over.

        One that was in an earlier holder's hands, without a verdict, comes with one more `lost`.
        """
        held = _IN_HAND
        if offset < self.past.end:
            if self.past.is_done(offset):
                self.pass_over(offset)
                return None
            if (before := self.past.of(offset)) is not None:
                held = before if before.parked else before._replace(lost=before.lost + 1)
        self._order.append(offset)
        self._next = offset + 1
        self._held[offset] = held
        return held

    def pass_over(self, offset: int) -> None:
        """A record that is not to be handed out."""
        self._order.append(offset)
        self._next = offset + 1
        self._done.add(offset)
        self._advance()

    def skip_to(self, offset: int) -> bool:
        """Nothing of ours lies before it, only what transactions leave behind. Was that news?"""
        if self._order or offset <= self._base:
            return False
        self._base = self._next = offset
        return True

    def hold(self, offset: int, held: Held) -> None:
        """It is handed out again, or waits."""
        self._held[offset] = held

    def state(self, offset: int) -> Held:
        return self._held[offset]

    def settle(self, offset: int) -> None:
        del self._held[offset]
        self._done.add(offset)
        self._advance()

    def metadata(self, *, given_back: bool = False, exact: bool = False) -> str | None:
        """
        What to write beside the base.

        Args:
            given_back: What is in hand is returned by a holder that lives: nothing was lost.
            exact: Leave nothing out.

        Returns:
            At most `LIMIT` bytes. Where that is too little, what is done is left out first, and then comes again after a
            crash; None if `exact` forbids it, or if it does not suffice.
        """
        runs = list(self._runs(given_back))
        text = _encoded(runs)
        if len(text) <= LIMIT or exact:
            return text if len(text) <= LIMIT else None
        for keep in (lambda run: run.held, lambda run: run.held and (run.attempt or run.lost or run.solo)):
            text = _encoded(_fitting(runs, keep))
            if len(text) <= LIMIT:
                return text
        return None

    def _advance(self) -> None:
        order, done = self._order, self._done
        while order and order[0] in done:
            done.remove(order.popleft())
        self._base = order[0] if order else self._next

    def _runs(self, given_back: bool) -> Iterator[_Run]:
        for fate, group in groupby(self._order, lambda offset: self._fate(offset, given_back)):
            if fate is not None:
                offsets = list(group)
                yield _run(offsets[0] - self._base, offsets[-1] - self._base, fate)
        yield from self._runs_ahead()

    def _runs_ahead(self) -> Iterator[_Run]:
        """What the earlier holder left where we have not been yet."""
        for first, last in self.past.done:
            if last >= self._next:
                yield _Run(max(first, self._next) - self._base, last - self._base)
        for first, last, held in self.past.held:
            if last >= self._next:
                yield _run(max(first, self._next) - self._base, last - self._base, held)

    def _fate(self, offset: int, given_back: bool) -> Held | Literal["done"] | None:
        """What is to be written of it; None: nothing, it is as if it had never been taken."""
        if offset in self._done:
            return "done"
        held = self._held[offset]
        if given_back and not held.parked:
            if held == _IN_HAND:
                return None
            held = held._replace(parked=True)
        return held


def past_of(base: int, metadata: str) -> Past:
    """What somebody wrote beside a commit; nothing, if it was not us."""
    try:
        runs = msgspec.json.decode(metadata.encode(), type=list[_Run])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        runs = []
    done = [(base + run.first, base + run.last) for run in runs if not run.held]
    held = [
        (base + run.first, base + run.last, Held(run.lost, run.solo, run.attempt, run.since, run.due, run.parked))
        for run in runs
        if run.held
    ]
    return Past(done, held, max((base + run.last + 1 for run in runs), default=0))


def _run(first: int, last: int, fate: Held | Literal["done"]) -> _Run:
    if fate == "done":
        return _Run(first, last)
    return _Run(first, last, True, fate.lost, fate.solo, fate.attempt, fate.since, fate.due, fate.parked)


def _encoded(runs: Iterable[_Run]) -> str:
    return msgspec.json.encode(list(runs)).decode()


def _fitting(runs: list[_Run], keep) -> list[_Run]:  # type: ignore[no-untyped-def]
    """All that must be kept and, of the others, the longest, as far as there is room."""
    must = [run for run in runs if keep(run)]
    room = LIMIT - len(_encoded(must))
    chosen = set()
    for run in sorted((run for run in runs if not keep(run)), key=lambda run: run.first - run.last):
        size = len(_encoded([run])) - 1
        if size > room:
            break
        room -= size
        chosen.add(run.first)
    return [run for run in runs if keep(run) or run.first in chosen]
