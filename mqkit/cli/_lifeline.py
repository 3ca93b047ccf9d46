"""The socket between `mqkit run` and its processes: health goes up, and its end says that the parent is gone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable

import msgspec

from mqkit.health import Health

EVERY = 0.5  # seconds between two reports
STALE = 10.0  # seconds without a report after which a process counts as hung


class Lifeline:
    """The child's end, a context manager. Without a descriptor there is no parent to talk to."""

    def __init__(self, health: Callable[[], Health], descriptor: int | None) -> None:
        self._health = health
        self._socket = None if descriptor is None else socket.socket(fileno=descriptor)
        self._closed = False

    def __enter__(self) -> Lifeline:
        if self._socket is not None:
            self._socket.settimeout(EVERY)
            threading.Thread(target=self._report, name="mqkit-lifeline", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True  # the socket ends with the process: its thread may still wait on it

    def _report(self) -> None:
        assert self._socket is not None
        while not self._closed:
            try:
                self._socket.sendall(msgspec.json.encode(self._health()) + b"\n")
                gone = self._socket.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                gone = True
            if gone:
                if not self._closed:
                    os.kill(os.getpid(), signal.SIGTERM)  # nobody would restart or stop us any more
                return


class Reports:
    """The parent's end: keeps the newest report."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._rest = b""
        self.health: Health | None = None

    def read(self) -> bool:
        """Take what has come; True if that was a report."""
        try:
            data = self._end.recv(65_536)
        except OSError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines:
            self.health = msgspec.json.decode(lines[-1], type=Health)
        return bool(lines)

    def close(self) -> None:
        self._end.close()
