"""Messages of an ordered source that were given back: they stay in this process, in the place of their key; pure."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Hashable

import msgspec

from mqkit.backends.base import Received


class Waiting(msgspec.Struct, gc=False):
    """One of them. `tag` is its place."""

    tag: int
    received: Received
    due: float = 0.0


class Parked:
    """By key. While one of a key waits here, later ones of it line up behind."""

    def __init__(self) -> None:
        self._keys: dict[Hashable, list[Waiting]] = {}
        self._times: list[tuple[float, int, Hashable]] = []  # heap; entries may be outdated

    def __len__(self) -> int:
        return sum(map(len, self._keys.values()))

    def holds(self, received: Received) -> bool:
        """Must this one line up?"""
        return received.key is not None and received.key in self._keys

    def put(self, waiting: Waiting) -> None:
        key = lane(waiting)
        line = self._keys.setdefault(key, [])
        bisect.insort(line, waiting, key=_place)
        if line[0] is waiting:
            heapq.heappush(self._times, (waiting.due, waiting.tag, key))

    def next_due(self) -> float | None:
        return self._times[0][0] if self._times else None

    def take(self, room: int, now: float) -> list[Waiting]:
        """What is due, with what lines up behind it."""
        taken: list[Waiting] = []
        while self._times and self._times[0][0] <= now and len(taken) < room:
            key = heapq.heappop(self._times)[2]
            line = self._keys.get(key)
            if line is None:
                continue
            count = 0
            while count < len(line) and len(taken) < room and line[count].due <= now:
                taken.append(line[count])
                count += 1
            del line[:count]
            if line:
                heapq.heappush(self._times, (line[0].due, line[0].tag, key))
            else:
                del self._keys[key]
        return taken


def lane(waiting: Waiting) -> Hashable:
    """Its key; what has none is a lane of its own."""
    key = waiting.received.key
    return ("", waiting.tag) if key is None else key


def _place(waiting: Waiting) -> int:
    return waiting.tag
