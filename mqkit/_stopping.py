"""SIGTERM and SIGINT as an event, so that a command ends in order."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TWICE = 0.5  # seconds in which a second signal is the same wish: timeout(1) signals a process and then its group


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Set by the first signal. The second one ends the process as if nobody had asked."""
    stop = threading.Event()
    first = 0.0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            # Not set here: this runs in the middle of whatever the main thread does, and in `stop.wait` it holds the lock
            # that `set` waits for. Starting a thread this way takes none.
            _thread.start_new_thread(stop.set, ())
        elif time.monotonic() - first > TWICE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
