"""The server's clock, as one publisher, receiver or admin sees it: read once, then carried forward so that it never steps."""

from __future__ import annotations

import time

_BOOT = getattr(time, "CLOCK_BOOTTIME", None)  # Linux


def ticks() -> float:
    """Seconds since some moment, as `time.monotonic`, those in which the machine slept included, where it can tell."""
    return time.monotonic() if _BOOT is None else time.clock_gettime(_BOOT)


class ServerClock:
    """
    Reads like seconds since 1970. The server itself decides about leases and delays; this is for expiry and looks.

    Whoever connects anew begins a new one: clocks drift apart by seconds a day, and after a fail-over it is another server's.
    """

    def __init__(self) -> None:
        self._offset: float | None = None

    def read(self, seconds: float, before: float, after: float) -> None:
        """What the server answered between these two moments, as `ticks` has them; only the first answer counts."""
        if self._offset is None:
            self._offset = seconds - (before + after) / 2

    def now(self) -> float:
        offset = self._offset
        return time.time() if offset is None else ticks() + offset
