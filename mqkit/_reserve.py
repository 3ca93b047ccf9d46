"""Reserve: at most once, what is in hand and waits to be settled before its handler starts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from mqkit.message import Delivery


class Reserve:
    """
    Lets out no more pieces of work (a delivery, or the members of a batch) than handlers can begin at once, so that what
    is settled is as good as begun, and everything else can be given back. Used by the pump thread only.
    """

    def __init__(self, places: int) -> None:
        self.waiting = 0  # messages
        self._free = places
        self._work: deque[list[Delivery[Any]]] = deque()
        self._left: dict[Any, list[int]] = {}  # by handle of what was let out: how many of its piece are not ended

    @property
    def ready(self) -> bool:
        return bool(self._work) and self._free > 0

    def put(self, members: list[Delivery[Any]]) -> None:
        self._work.append(members)
        self.waiting += len(members)

    def let_out(self, holds: Callable[[Delivery[Any]], bool]) -> list[list[Delivery[Any]]]:
        """As many pieces as there are places, without what was revoked meanwhile."""
        out = []
        while self.ready:
            work = self._work.popleft()
            self.waiting -= len(work)
            if members := [delivery for delivery in work if holds(delivery)]:
                self._free -= 1
                left = [len(members)]
                self._left.update((delivery._received.handle, left) for delivery in members)
                out.append(members)
        return out

    def ended(self, handle: Any) -> None:
        """One that was let out has come to its end, or never started."""
        left = self._left.pop(handle, None)
        if left is not None:
            left[0] -= 1
            self._free += not left[0]

    def take_back(self) -> list[Delivery[Any]]:
        """Empty it; what waited."""
        work, self._work, self.waiting = self._work, deque(), 0
        return [delivery for members in work for delivery in members]

    def clear(self) -> None:
        """Nothing is in hand any more, settled or not."""
        self.take_back()
        for handle in list(self._left):
            self.ended(handle)
