"""The socket between `mqkit run` and its processes: health goes up, and its end says that the parent is gone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec

from mqkit.cli._exit import USAGE, code_of
from mqkit.errors import MqkitError
from mqkit.health import Health

EVERY = 0.5  # seconds between two reports
REFUSED: Literal["refused"] = "refused"
STALE = 10.0  # seconds without a report after which a process counts as hung

Report = Health | Literal["refused"]
_decode = msgspec.json.Decoder(Report).decode


class Lifeline:
    """
    The child's end, a context manager. Without a descriptor there is no parent to talk to.

    A child that ends because its program or its settings are wrong says so before: an exit code alone could come from
    anywhere, such as `os._exit` in a handler.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._socket = None if descriptor is None else socket.socket(fileno=descriptor)
        self._lock = threading.Lock()
        self._unsent = b""
        self._thread: threading.Thread | None = None
        self._closed = False

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self._socket is not None and isinstance(error, MqkitError) and code_of(error) == USAGE:
            with suppress(OSError):
                self._send(REFUSED)
        self._closed = True
        if self._socket is not None and self._thread is None:
            self._socket.close()

    def report(self, health: Callable[[], Health]) -> None:
        """Again and again, from a thread, until the end."""
        if self._socket is not None:
            self._socket.settimeout(EVERY)
            self._thread = threading.Thread(target=self._report, args=[health], name="mqkit-lifeline", daemon=True)
            self._thread.start()

    def _report(self, health: Callable[[], Health]) -> None:
        assert self._socket is not None
        with self._socket:
            while not self._closed:
                try:
                    self._send(None if self._unsent else health())
                    gone = self._socket.recv(1) == b""
                except TimeoutError:
                    continue
                except OSError:
                    gone = True
                if gone:
                    if not self._closed:
                        os.kill(os.getpid(), signal.SIGTERM)  # nobody would restart or stop us any more
                    return

    def _send(self, report: Report | None) -> None:
        """As much as the parent takes; the rest goes first the next time, so that no line is ever cut."""
        assert self._socket is not None
        with self._lock:
            if report is not None:
                self._unsent += msgspec.json.encode(report) + b"\n"
            self._unsent = self._unsent[self._socket.send(self._unsent) :]


class Reports:
    """The parent's end: keeps the newest report."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._rest = b""
        self.health: Health | None = None
        self.refused = False  # the child cannot start as its program is

    def read(self) -> bool:
        """Take what has come; True if there was a report."""
        lines: list[bytes] = []
        with suppress(OSError):
            while data := self._end.recv(65_536):
                *complete, self._rest = (self._rest + data).split(b"\n")
                lines += complete
        for line in lines:
            report = _decode(line)
            if report == REFUSED:
                self.refused = True
            else:
                self.health = report
        return bool(lines)

    def close(self) -> None:
        self._end.close()
