"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP = 0.002  # seconds between two looks


def until(condition: Callable[[], object], within: float = 30.0) -> None:
    """Return as soon as the condition holds; `AssertionError` after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s"
        time.sleep(STEP)
