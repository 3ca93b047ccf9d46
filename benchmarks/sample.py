"""What one run of one side brings, and the stopwatch that most sides use."""

from __future__ import annotations

import time
from collections.abc import Callable

Sample = dict[str, float]  # measure, with its unit, to value

RATE, CPU = "msg/s", "us CPU/msg"
MEDIAN, P99 = "median ms", "p99 ms"

SMALL = {"i": 10}
LARGE = {f"field{number}": f"{number:02d} " + "some text of a message, " * 2 for number in range(16)}  # about 1 KiB


class Stopwatch:
    """Wall time, and CPU time of every thread of this process."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def sample(self, messages: int) -> Sample:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return {RATE: messages / wall, CPU: cpu / messages * 1e6}


def wait_until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    """Look every 2 ms, which costs nothing measurable. Raises TimeoutError: a lost message must not pass as a fast one."""
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all messages arrived within {seconds:g} s")
        time.sleep(0.002)


def percentiles(seconds: list[float]) -> Sample:
    ordered = sorted(seconds)
    return {MEDIAN: ordered[len(ordered) // 2] * 1000, P99: ordered[int(len(ordered) * 0.99)] * 1000}
