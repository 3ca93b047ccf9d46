"""Processes of `programs`, and what their lines say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable

from tests.integration import programs

_MARK = "\0caught up"  # on a line of its own, also behind half a line


class Lines(list[str]):
    """
    What processes wrote, in exactly the order in which they wrote it: they share one pipe, and one thread reads it. Were
    it a pipe and a thread for each, a slow machine could put what was written later first.
    """

    def __init__(self) -> None:
        super().__init__()
        read, self.pipe = os.pipe()
        self._marks = threading.Semaphore(0)
        self._reader = threading.Thread(target=self._read, args=(read,), daemon=True)
        self._reader.start()

    def catch_up(self) -> None:
        """What was written before is here."""
        os.write(self.pipe, f"\n{_MARK}\n".encode())
        assert self._marks.acquire(timeout=30.0)

    def close(self) -> None:
        os.close(self.pipe)
        self._reader.join(10.0)
        assert not self._reader.is_alive(), "a process that writes here has not ended"

    def _read(self, pipe: int) -> None:
        with os.fdopen(pipe) as written:
            for line in written:
                if line.rstrip("\n") == _MARK:
                    self._marks.release()
                elif line.strip():
                    self.append(line.strip())


class Consumer:
    """A process that writes to `lines`."""

    module = programs.__name__
    farewell = 30.0  # seconds it may take to end

    def __init__(self, lines: Lines, program: str, *arguments: str) -> None:
        self._lines = lines
        self.process = subprocess.Popen([sys.executable, "-m", self.module, program, *arguments], stdout=lines.pipe)

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def leave(self) -> None:
        self.process.terminate()
        self.end()

    def end(self) -> int:
        code = self.process.wait(self.farewell)
        self._lines.catch_up()
        return code


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
