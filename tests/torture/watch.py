"""Follows a journal while it is written: how much work was done, and who is at work."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

STEP = 0.02  # seconds between two looks


class Watch:
    def __init__(self, journal: Path) -> None:
        self._file = journal.open("rb")
        self._rest = b""
        self.done = 0
        self.tried = 0
        self._consumers: deque[int] = deque(maxlen=100)
        self._publishers: deque[int] = deque(maxlen=100)

    def wait_for_work(self, more: int, within: float) -> bool:
        """Until so many more messages are handled, and somebody publishes. False: that was too long."""
        goal, deadline = self.done + more, time.monotonic() + within
        self.look()
        while self.done < goal or not self._publishers:
            if time.monotonic() > deadline:
                return False
            time.sleep(STEP)
            self.look()
        return True

    def wait_for_publishes(self, more: int, within: float) -> None:
        """Until so many more were begun, or that was too long."""
        self.look()
        goal, deadline = self.tried + more, time.monotonic() + within
        while self.tried < goal and time.monotonic() < deadline:
            time.sleep(STEP)
            self.look()

    def look(self) -> None:
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        for line in lines:
            event, id, *rest = line.decode().split()
            if event == "done":
                self.done += 1
                self._consumers.append(int(rest[1]))
            elif event == "try" and id.split("-")[0].isdigit():
                self.tried += 1
                self._publishers.append(int(id.split("-")[0]))

    @property
    def consumers(self) -> set[int]:
        """Processes that have handled something lately."""
        return set(self._consumers)

    @property
    def publishers(self) -> set[int]:
        return set(self._publishers)

    def close(self) -> None:
        self._file.close()
