"""Where deliveries wait for somebody who pulls: a thread that blocks, or a task that awaits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any


class Mailbox:
    """
    First in, first out, unbounded by itself; who puts keeps the bound. Taken by threads or by tasks, not by both.

    Args:
        most: Items kept; with "drop_oldest" or "drop_newest" what is over it goes. None: all are kept.
    """

    def __init__(self, most: int | None = None, overflow: str = "drop_oldest") -> None:
        self._items: deque[Any] = deque()
        self._most = most
        self._overflow = overflow
        self._arrived = threading.Condition()
        self._awaiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self.closed = False
        self.dropped = 0

    def put(self, item: Any) -> None:
        with self._arrived:
            if self._most is not None and len(self._items) >= self._most:
                self.dropped += 1
                if self._overflow == "drop_newest":
                    return
                self._items.popleft()
            self._items.append(item)
            self._notify()

    def close(self) -> None:
        with self._arrived:
            self.closed = True
            self._notify()

    def take(self) -> Any | None:
        """The next item, or None if there is none now."""
        with self._arrived:
            return self._items.popleft() if self._items else None

    def get(self, timeout: float) -> Any | None:
        """Wait for the next item; None when the timeout passes or the box is closed and empty."""
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not self._items and not self.closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self._arrived.wait(left):
                    break
            return self._items.popleft() if self._items else None

    async def aget(self, timeout: float | None) -> Any | None:
        """As `get`, for a task; without a timeout it waits until the box is closed."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        while True:
            with self._arrived:
                if self._items or self.closed:
                    return self._items.popleft() if self._items else None
                event = asyncio.Event()
                self._awaiting[event] = loop
            try:
                async with asyncio.timeout_at(deadline):
                    await event.wait()
            except TimeoutError:
                return self.take()
            finally:
                with self._arrived:
                    self._awaiting.pop(event, None)

    def _notify(self) -> None:
        self._arrived.notify_all() if self.closed else self._arrived.notify()
        for event, loop in self._awaiting.items():  # all of them: who finds nothing waits again
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # that loop is closed, and with it whoever waited
                continue
        self._awaiting.clear()
