"""Delivery tags of one channel: what is unsettled, and the fewest acknowledgements that settle what is done; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

MANY = 1000  # tags that are settled and remembered before they are forgotten


class Tags:
    """
    Numbers that a server gave to deliveries, in rising order.

    An acknowledgement with `multiple` takes all before it along, so it may only cover what is done, and must end on a tag
    that is still unsettled at the server: on another one the channel is closed (406).
    """

    __slots__ = ("_done", "_order", "_over")

    def __init__(self) -> None:
        self._order: deque[int] = deque()
        self._done: set[int] = set()  # to be acknowledged
        self._over: set[int] = set()  # settled singly, and still in `_order`

    def came(self, tag: int) -> None:
        self._order.append(tag)

    def done(self, tag: int) -> None:
        self._done.add(tag)

    def returned(self, tags: Iterable[int]) -> Iterator[tuple[int, bool]]:
        """How to give these back to the server, each as (tag, multiple): at once if nothing else is unsettled."""
        back = sorted(tags)
        if len(back) > 1 and len(back) == len(self._order) - len(self._over):
            self._order.clear()
            self._over.clear()
            yield back[-1], True
            return
        self._over.update(back)
        for tag in back:
            yield tag, False

    def acknowledgements(self) -> Iterator[tuple[int, bool]]:
        """Each as (tag, multiple). What they cover is settled afterwards."""
        if not self._done:
            return
        order, done, over = self._order, self._done, self._over
        last = count = 0
        while order:
            tag = order[0]
            if tag in done:
                done.discard(tag)
                last, count = tag, count + 1
            elif tag in over:
                over.discard(tag)
            else:
                break
            order.popleft()
        if last:
            yield last, count > 1
        for tag in sorted(done):
            yield tag, False
        over |= done
        done.clear()
        if len(over) > MANY and 2 * len(over) > len(order):  # behind one that is held for long
            self._order = deque(tag for tag in order if tag not in over)
            over.clear()
