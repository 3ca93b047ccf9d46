"""Delivery tags of one channel: what is unsettled, and the fewest acknowledgements that settle what is done; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator


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

    def returned(self, tag: int) -> None:
        """Given back to the server."""
        self._over.add(tag)

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
