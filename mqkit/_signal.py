"""A latched wake-up between two threads, as cheap as the language has it."""

from __future__ import annotations

import threading


class Signal:
    """
    `set` makes the next `wait`, or the one that runs, return. One thread waits, any thread sets; setting twice is
    setting once. A bare lock: an Event costs six times as much, and takes a lock that the waiter may hold, or this very
    thread, where a signal handler has interrupted it.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        try:
            if self._lock.locked():  # asked first: it costs less than an exception
                self._lock.release()
        except RuntimeError:  # another has set it at the same moment
            return

    def wait(self, timeout: float) -> bool:
        """True if it was set; then it is not any more."""
        return self._lock.acquire(timeout=max(0.0, timeout))
