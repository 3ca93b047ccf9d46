"""
Ledger: what became of the records of one partition that this process took, and its form as commit metadata; pure.

A commit says only "everything below this offset is done". What is done above it, and what was in hand or waiting for a retry,
is written beside it, as text that the broker keeps with the offset. So a partition is worked on out of order, and whoever
takes it over repeats nothing that was settled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec

LIMIT = 4096  # bytes the broker takes, `offset.metadata.max.bytes`
EPOCH = 1_700_000_000  # seconds since 1970; times are written in tenths of seconds since then, which are short
FAR = 1 << 53  # no time and no count is written that is larger

_Count = Annotated[int, msgspec.Meta(ge=0, le=FAR)]
_Tenths = Annotated[int, msgspec.Meta(ge=-FAR, le=FAR)]


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
_UNTOUCHED = Held(parked=True)  # it waits behind another of its key, or was given back before anything became of it


class _Run(NamedTuple):
    """Neighbours that share a fate. Between `first` and `last`, counted from the commit, there may be no other record."""

    first: int
    last: int
    held: Held | None  # None: done


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    """A run as it is written, without what it ends with that is as here."""

    skipped: _Count = 0  # offsets between the one before and this
    length: _Count = 1
    kind: Literal[0, 1, 2] = 0  # done, in hand, parked
    lost: _Count = 0
    solo: _Count = 0
    attempt: _Count = 0
    since: _Tenths = 0  # 0: not said
    due: _Tenths = 0


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

    Attributes:
        crowded: Was there no room for all that is in hand or waits, when it was written last? Then nothing more is to be taken.
    """

    def __init__(self, base: int, past: Past) -> None:
        self.past = past
        self._base = base
        self._next = base  # behind the last one taken
        self._order: deque[int] = deque()  # taken and not below the base, ascending
        self._done: set[int] = set()
        self._held: dict[int, Held] = {}
        self.crowded = False

    def copy(self) -> Ledger:
        other = Ledger(self._base, self.past)
        other._next, other._order, other._done = self._next, self._order.copy(), self._done.copy()
        other._held, other.crowded = self._held.copy(), self.crowded
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

    def metadata(self, *, given_back: bool = False) -> str:
        """
        What to write beside the base.

        Args:
            given_back: What is in hand is returned by a holder that lives: nothing was lost.

        Returns:
            At most `LIMIT` bytes. Where that is too little, some of what is done is left out first, and then comes again
            after a crash; where all of it is too little, some of what waits, whose attempts then begin anew.
        """
        runs = list(self._runs(given_back))
        text = _encoded(runs)
        self.crowded = False
        for must in (_is_held, _is_marked, _is_suspect, lambda _: False):
            if len(text) <= LIMIT:
                break
            self.crowded = must is not _is_held
            text = _encoded(_fitting(runs, must))
        return text

    def _advance(self) -> None:
        order, done = self._order, self._done
        while order and order[0] in done:
            done.remove(order.popleft())
        self._base = order[0] if order else self._next

    def _runs(self, given_back: bool) -> Iterator[_Run]:
        """In order, without what is as if it had never been taken. Looks at everything in hand, before each commit."""
        base, done, held = self._base, self._done, self._held
        first = last = -1
        fate: Held | None = _UNTOUCHED
        for offset in self._order:
            its = None if offset in done else held[offset]
            if its is fate or its == fate:
                last = offset
                continue
            if (said := _said(fate, given_back)) is not _UNTOUCHED:
                yield _Run(first - base, last - base, said)
            first = last = offset
            fate = its
        if (said := _said(fate, given_back)) is not _UNTOUCHED:
            yield _Run(first - base, last - base, said)
        if self.past.end > self._next:
            yield from sorted(self._runs_ahead(), key=lambda run: run.first)

    def _runs_ahead(self) -> Iterator[_Run]:
        """What the earlier holder left where we have not been yet."""
        base, ahead = self._base, self._next
        for first, last in self.past.done:
            if last >= ahead:
                yield _Run(max(first, ahead) - base, last - base, None)
        for first, last, held in self.past.held:
            if last >= ahead:
                yield _Run(max(first, ahead) - base, last - base, held)


def _said(fate: Held | None, given_back: bool) -> Held | None:
    """What is written of a run with this fate."""
    if fate is not None and given_back and not fate.parked:
        fate = fate._replace(parked=True)
    return _UNTOUCHED if fate == _UNTOUCHED else fate


def past_of(base: int, metadata: str) -> Past:
    """What somebody wrote beside a commit; nothing, if it was not us."""
    try:
        entries = msgspec.json.decode(metadata.encode(), type=list[_Entry])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        entries = []
    past = Past([], [], 0)
    end = base
    for entry in entries:
        first = end + entry.skipped
        end = first + entry.length
        if entry.kind == 0:
            past.done.append((first, end - 1))
        else:
            past.held.append((first, end - 1, _held(entry)))
    return past._replace(end=end if entries else 0)


def _encoded(runs: Iterable[_Run]) -> str:
    entries, end = [], 0
    for first, last, held in runs:
        entries.append(_entry(first - end, last - first + 1, held))
        end = last + 1
    return msgspec.json.encode(entries).decode()


def _entry(skipped: int, length: int, held: Held | None) -> list[int]:
    """As `_Entry` is read."""
    if held is None:
        return [skipped, length] if length > 1 else [skipped]
    if held is _IN_HAND:
        return [skipped, length, 1]
    kind, since, due = 2 if held.parked else 1, _tenths(held.since, math.floor), _tenths(held.due, math.ceil)
    entry = [skipped, length, kind, held.lost, held.solo, held.attempt, since, due]
    while not entry[-1]:  # its kind is not 0
        del entry[-1]
    return entry


def _tenths(moment: float, rounded: Callable[[float], int]) -> int:
    return rounded(max(-FAR, min(FAR, (moment - EPOCH) * 10))) if moment else 0


def _held(entry: _Entry) -> Held:
    since, due = (EPOCH + tenths / 10 if tenths else 0.0 for tenths in (entry.since, entry.due))
    return Held(entry.lost, entry.solo, entry.attempt, since, due, entry.kind == 2)


def _is_held(run: _Run) -> bool:
    return run.held is not None


def _is_marked(run: _Run) -> bool:
    return run.held is not None and bool(run.held.attempt or run.held.lost or run.held.solo)


def _is_suspect(run: _Run) -> bool:
    """Held by somebody who may die of it."""
    return run.held is not None and not run.held.parked


def _fitting(runs: Sequence[_Run], must: Callable[[_Run], bool]) -> list[_Run]:
    """All that must be kept and, as far as there is room, of the others what is in hand, then what is done; the longest first."""
    room = LIMIT - len(_encoded(run for run in runs if must(run)))
    chosen = set()
    others = [run for run in runs if not must(run)]
    for run in sorted(others, key=lambda run: (not _is_suspect(run), _is_held(run), run.first - run.last)):
        size = len(_encoded([run])) - 1  # at least as long as behind others, from which it is less far
        if size > room:
            break
        room -= size
        chosen.add(run.first)
    return [run for run in runs if must(run) or run.first in chosen]
