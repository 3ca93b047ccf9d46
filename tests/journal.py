"""What processes that may be killed write down, for who counts afterwards."""

from __future__ import annotations

import os

LINE = 64  # bytes


class Journal:
    """
    An event is one line, appended by one system call, so the order of lines is that of events over all processes. All
    lines have one length that divides a page of memory: one that lay on two pages could be read, or survive a kill, by half.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words: object) -> None:
        line = " ".join(map(str, words)).encode().ljust(LINE - 1) + b"\n"
        if len(line) != LINE:
            raise ValueError(f"an event of {len(line)} bytes: the limit is {LINE}")
        os.write(self._descriptor, line)
