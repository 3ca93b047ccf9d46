"""Follows a journal while it is written: how much work was done, who is at work, and when there was a sign of life."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path


class Watch:
    def __init__(self, journal: Path) -> None:
        self._file = journal.open("rb")
        self._rest = b""
        self.done = 0
        self.tried = 0
        self._heard = time.monotonic()
        self._consumers: deque[int] = deque(maxlen=100)
        self._publishers: deque[int] = deque(maxlen=100)

    def look(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        if lines:
            self._heard = time.monotonic()
        for line in lines:
            event, id, *rest = line.decode().split()
            if event == "done":
                self.done += 1
                self._consumers.append(int(rest[1]))
            elif event == "try" and id.split("-")[0].isdigit():
                self.tried += 1
                self._publishers.append(int(id.split("-")[0]))

    @property
    def silence(self) -> float:
        """Seconds since anything was written down."""
        return time.monotonic() - self._heard

    @property
    def consumers(self) -> set[int]:
        """Processes that have handled something lately."""
        return set(self._consumers)

    @property
    def publishers(self) -> set[int]:
        return set(self._publishers)

    def close(self) -> None:
        self._file.close()
