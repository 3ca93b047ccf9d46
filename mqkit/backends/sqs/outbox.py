"""Outbox: what waits to be sent, in the order it came, and what may go together; pure."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from mqkit.backends.sqs.options import MOST
from mqkit.backends.sqs.places import Route
from mqkit.backends.sqs.sender import Letter, limit_of


class Parcel(NamedTuple):
    letter: Letter
    message: Any


class Outbox:
    """
    By route. Of a FIFO one, no two calls with the same ordering group are under way together: SQS may store them in any
    order. Whoever takes a batch says when it is answered.
    """

    def __init__(self) -> None:
        self._lines: dict[tuple[Route, str], deque[Parcel]] = {}  # of a route, or of a group of a FIFO route
        self._busy: set[tuple[Route, str]] = set()
        self._ready: dict[Route, deque[tuple[Route, str]]] = {}  # lines with something that may go

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    @property
    def ready(self) -> bool:
        return bool(self._ready)

    def put(self, parcel: Parcel) -> None:
        line = (parcel.letter.route, parcel.letter.group)
        waiting = self._lines.get(line)
        if waiting is not None:
            waiting.append(parcel)
            return
        self._lines[line] = deque([parcel])
        if line not in self._busy:
            self._ready.setdefault(line[0], deque()).append(line)

    def take(self) -> list[Parcel]:
        """What one call takes; nothing where all that waits stands behind what is under way."""
        if not self._ready:
            return []
        route, lines = next(iter(self._ready.items()))
        del self._ready[route]
        batch: list[Parcel] = []
        size, most = 0, limit_of(route)
        while lines and len(batch) < MOST:
            waiting = self._lines[lines[0]]
            if batch and size + waiting[0].letter.packed.size > most:
                break
            if route.fifo:
                self._busy.add(lines[0])
            parcel = waiting.popleft()
            size += parcel.letter.packed.size
            batch.append(parcel)
            if not waiting:
                del self._lines[lines.popleft()]
        if lines and route.fifo and lines[0] in self._busy:
            lines.popleft()  # the rest of a group stands behind what is taken now
        if lines:
            self._ready[route] = lines  # behind the other routes
        return batch

    def answered(self, batch: list[Parcel]) -> None:
        for parcel in batch:
            line = (parcel.letter.route, parcel.letter.group)
            if line in self._busy:
                self._busy.discard(line)
                if line in self._lines:
                    self._ready.setdefault(line[0], deque()).append(line)

    def clear(self) -> list[Parcel]:
        """Everything that was not taken."""
        left = [parcel for line in self._lines.values() for parcel in line]
        self._lines.clear()
        self._ready.clear()
        return left
