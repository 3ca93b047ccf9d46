"""VirtualClock: time that moves when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Callable


class VirtualClock:
    """
    `Bus("memory://", clock=VirtualClock())`: delays, back-offs, expiry and batch ages follow it, nobody waits for them.

    Args:
        start: Seconds since 1970 it shows at first.
    """

    virtual = True

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[], None]] = []

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move on; whatever becomes due is handed out. Time never goes back."""
        if not seconds >= 0:
            raise ValueError(f"advance({seconds!r}): a clock does not go back")
        with self._lock:
            self._now += seconds
            moved = list(self._subscribers)
        for tell in moved:
            tell()

    def advance_to(self, moment: float) -> None:
        """Move on to a moment; nothing happens if it has passed."""
        self.advance(max(0.0, moment - self._now))

    def subscribe(self, moved: Callable[[], None]) -> None:
        with self._lock:
            self._subscribers.append(moved)
