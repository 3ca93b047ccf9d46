"""Processes of `programs`, and what their lines say."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from tests.integration import programs


class Consumer:
    """A process; `lines` is shared by several, in the order in which they were written."""

    module = programs.__name__
    farewell = 30.0  # seconds it may take to end

    def __init__(self, lines: list[str], program: str, *arguments: str) -> None:
        self._lines = lines
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, program, *arguments], stdout=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def leave(self) -> None:
        self.process.terminate()
        self.end()

    def end(self) -> int:
        code = self.process.wait(self.farewell)
        self._reader.join(10.0)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line.strip())


def until(condition: Callable[[], object], within: float) -> float:
    """How long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"not within {within:g} s"
        time.sleep(0.01)
    return time.monotonic() - began


def done(lines: list[str]) -> set[tuple[int, int]]:
    split = [line.split() for line in list(lines)]
    return {(int(key), int(number)) for key, number, _, outcome in split if outcome == "done"}


def inversions(lines: list[str]) -> list[str]:
    """Attempts on a message although an earlier one of its key was not done: a done one may be repeated after a kill."""
    wrong = []
    done: dict[int, int] = defaultdict(lambda: -1)  # the last number of each key that was done
    for line in lines:
        key, number, _, outcome = line.split()
        if int(number) > done[int(key)] + 1:
            wrong.append(line)
        if outcome == "done":
            done[int(key)] = max(done[int(key)], int(number))
    return wrong
