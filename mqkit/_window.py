"""Window: how many messages one consumer may hold."""

from __future__ import annotations

import time

from mqkit._settings import Settings

MOST = 1000  # messages one consumer holds
AHEAD = 0.1  # seconds of work it may hold beyond what runs, measured by what it has handled
LOOK = 0.05  # seconds over which that is measured
QUICK_LOOK, ENOUGH = 0.005, 100  # ... or these, when so many were handled: a fast start for fast handlers


class Window:
    """
    Fixed, or what the handlers can do in a moment and no more: another process may have idle ones.

    `size` is the bound now, `most` what it never exceeds.
    """

    def __init__(self, settings: Settings) -> None:
        running = settings.concurrency if settings.batch is None else settings.batch.size * settings.concurrency
        self._least = min(max(running * 2, 16), 20_000)
        self._fixed = settings.window is not None
        self.size = settings.window or self._least
        self.most = settings.window or max(MOST, self._least)
        self._finished = 0  # since _measured
        self._measured = time.monotonic()

    def finished(self, count: int) -> None:
        """So many deliveries came to their end since the last call."""
        if self._fixed:
            return
        self._finished += count
        now = time.monotonic()
        elapsed = now - self._measured
        if elapsed < (QUICK_LOOK if self._finished >= ENOUGH else LOOK):
            return
        ahead = int(self._finished / elapsed * AHEAD)
        self.size = min(self.most, self._least + ahead)
        self._finished, self._measured = 0, now
