"""Time as the core sees it: one clock that never steps, handed in so that tests can hold it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Seconds that read like a time since 1970 but only ever move forward, whatever happens to the wall clock."""

    virtual: bool  # true: time moves only when a test says so, and nobody waits for it

    def now(self) -> float: ...

    def subscribe(self, moved: Callable[[], None]) -> None:
        """Call `moved` after every jump of a virtual clock; a real clock never calls it."""
        ...


def is_clock(value: object) -> bool:
    """Has it what a `Clock` has? The class of one is none."""
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("virtual", "now", "subscribe"))


class SystemClock:
    """The wall clock at import, carried forward by the monotonic clock."""

    virtual = False

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic() + self._offset

    def subscribe(self, moved: Callable[[], None]) -> None:
        del moved
