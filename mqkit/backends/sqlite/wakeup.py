"""What the commit thread sleeps on: local work, a hint that the file changed, or the time for the next look."""

from __future__ import annotations

import ctypes
import math
import os
import select
import threading

FIRST_LOOK, GROWTH = 0.001, 1.5
LAST_LOOK, LAST_HINTED_LOOK = 0.02, 0.25

_IN_MODIFY, _IN_NONBLOCK, _IN_CLOEXEC = 0x2, 0o4000, 0o2000000  # inotify(7)


class Wakeup:
    """
    A bell for local work, and on Linux inotify on the write-ahead log.

    A change of the file is only believed when SQLite shows it (`PRAGMA data_version`). inotify rings before the commit is
    visible, so it merely makes the next looks frequent; without it the looks stay at most 20 ms apart.
    """

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()  # between `ring` and `close`, after which the number may be another file
        self._ear, self._bell = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._bell, False)
        self._hints = _watch(f"{path}-wal")
        self._rings, self._all = select.poll(), select.poll()
        self._rings.register(self._ear, select.POLLIN)
        self._all.register(self._ear, select.POLLIN)
        if self._hints >= 0:
            self._all.register(self._hints, select.POLLIN)
        self._look = FIRST_LOOK

    def ring(self) -> None:
        """From any thread, latched; after `close` there is nobody to hear it."""
        with self._lock:
            try:
                if self._bell >= 0:
                    os.write(self._bell, b"!")
            except BlockingIOError:
                pass  # enough rings are waiting

    def expect(self) -> None:
        """A change is near, or was just seen: look again soon."""
        self._look = FIRST_LOOK

    def wait(self, timeout: float, *, watch: bool) -> None:
        """Until a ring or the timeout; with `watch` also until a hint, and no longer than to the next look."""
        poll = self._rings
        if watch:
            poll = self._all
            timeout = min(timeout, self._look)
            self._look = min(self._look * GROWTH, LAST_HINTED_LOOK if self._hints >= 0 else LAST_LOOK)
        for descriptor, _ in poll.poll(max(0, math.ceil(timeout * 1000))):
            _drain(descriptor)
            if descriptor == self._hints:
                self.expect()

    def close(self) -> None:
        with self._lock:
            for descriptor in (self._ear, self._bell, self._hints):
                if descriptor >= 0:
                    os.close(descriptor)
            self._ear = self._bell = self._hints = -1

    def abandon(self) -> None:
        """Close it in a forked child, where a thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self.close()


def _drain(descriptor: int) -> None:
    try:
        while len(os.read(descriptor, 4096)) == 4096:
            pass
    except BlockingIOError:
        pass


def _watch(path: str) -> int:
    """A descriptor that becomes readable when `path` is written, or -1 where the system has no such thing."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        hints: int = libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    except (OSError, AttributeError):
        return -1
    if hints >= 0 and libc.inotify_add_watch(hints, os.fsencode(path), _IN_MODIFY) < 0:
        os.close(hints)
        return -1
    return hints
