"""The parent of several processes: starts them, restarts those that die, stops them together."""

from __future__ import annotations

import logging
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mqkit._stopping import stopping
from mqkit.cli import _exit
from mqkit.cli._lifeline import STALE, Reports
from mqkit.cli._reload import Snapshot, changed, snapshot
from mqkit.health import Health

log = logging.getLogger("mqkit")

STEP = 0.1  # seconds between two looks at the processes
LOOK = 0.5  # seconds between two looks at the files
LASTS = 10.0  # seconds a process must have lived for its death to count as the first again
BACKOFF = (0.5, 30.0)  # seconds: first and longest wait before a restart
EXTRA = 15.0  # seconds beyond grace for settling, flushing and closing, then SIGKILL


def restart_delay(failures: int, chance: Callable[[], float] = random.random) -> float:
    """Seconds before the restart after so many deaths in a row: doubling, and from half to the whole of it."""
    base, cap = BACKOFF
    return min(cap, base * 2.0 ** min(failures - 1, 30)) * (0.5 + chance() / 2)


class Child:
    """One place among the processes, whoever fills it now."""

    def __init__(self, number: int, command: Sequence[str]) -> None:
        self.number = number
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._reports: Reports | None = None
        self._reported = self._started = 0.0
        self._failures = 0
        self.due = 0.0  # time.monotonic() at which an empty place is filled

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C reaches the parent only, which passes it on once. A second one would kill.
            self._process = subprocess.Popen(
                [*self._command, f"--lifeline={theirs.fileno()}"], pass_fds=[theirs.fileno()], start_new_session=True
            )
        self._reports = Reports(ours)
        self._started = self._reported = time.monotonic()
        log.info("process.started", extra={"number": self.number, "pid": self._process.pid})

    def look(self) -> int | None:
        """Take reports; the exit code once, when the process has ended."""
        process, reports = self._process, self._reports
        if process is None or reports is None:
            return None
        if reports.read():
            self._reported = time.monotonic()
        code = process.poll()
        if code is None:
            return None
        reports.close()
        self._process = self._reports = None
        lived = time.monotonic() - self._started
        self._failures = 1 if lived > LASTS else self._failures + 1
        delay = restart_delay(self._failures)
        self.due = time.monotonic() + delay
        log.info("process.ended", extra={"number": self.number, "code": code, "lived": f"{lived:.1f}"})
        return code

    def again_now(self) -> None:
        self._failures, self.due = 0, 0.0

    def signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def health(self) -> Health:
        reports = self._reports
        if reports is None:
            return Health(True, False, [f"process {self.number}: ended, will be restarted"])
        silent = time.monotonic() - self._reported
        if silent > STALE:
            return Health(False, False, [f"process {self.number}: silent for {silent:.0f} s"])
        if reports.health is None:
            return Health(True, False, [f"process {self.number}: starting"])
        reasons = [f"process {self.number}: {reason}" for reason in reports.health.reasons]
        return Health(reports.health.live, reports.health.ready, reasons)


class Supervisor:
    """
    Args:
        command: Of one process, without `--lifeline`.
        reload: Folder whose .py files are watched; a process that cannot start then waits for a change.
    """

    def __init__(self, command: Sequence[str], processes: int, *, grace: float, reload: Path | None) -> None:
        self._children = [Child(number + 1, command) for number in range(processes)]
        self._grace = grace
        self._folder = reload
        self._files: Snapshot = {} if reload is None else snapshot(reload)
        self._looked = 0.0
        self._broken = False  # the program cannot start as it is

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit code."""
        with stopping() as stop:
            try:
                while not stop.is_set():
                    if (code := self._turn(stop)) is not None:
                        self._stop()
                        return code
                    stop.wait(STEP)
                return self._stop()
            finally:
                for child in self._children:
                    child.signal(signal.SIGKILL)

    def health(self) -> Health:
        """All processes as one: live and ready if each of them is."""
        parts = [child.health() for child in self._children]
        reasons = [reason for part in parts for reason in part.reasons]
        return Health(all(part.live for part in parts), all(part.ready for part in parts), reasons)

    def _turn(self, stop: threading.Event) -> int | None:
        """Fill what is empty, follow changed files. An exit code when going on would not help."""
        if self._folder is not None and self._files_changed(self._folder):
            self._stop()
            if stop.is_set():
                return None
            self._broken = False
            for child in self._children:
                child.again_now()
        for child in self._children:
            code = child.look()
            if code == _exit.USAGE:  # the program or its settings are wrong; it has said so on stderr
                if self._folder is None:
                    return code
                self._broken = True
            if not child.running and not self._broken and time.monotonic() >= child.due:
                child.start()
        return None

    def _files_changed(self, folder: Path) -> bool:
        if time.monotonic() - self._looked < LOOK:
            return False
        self._looked = time.monotonic()
        before, self._files = self._files, snapshot(folder)
        paths = changed(before, self._files)
        if paths:
            log.info("files.changed", extra={"first": paths[0], "count": len(paths)})
        return bool(paths)

    def _stop(self) -> int:
        """SIGTERM to all, a bounded wait, SIGKILL to the rest. OK if all of them ended in order."""
        deadline = time.monotonic() + self._grace + EXTRA
        worst = _exit.OK
        for child in self._children:
            child.signal(signal.SIGTERM)
        while any(child.running for child in self._children):
            if late := time.monotonic() > deadline:
                for child in self._children:
                    child.signal(signal.SIGKILL)
            for child in self._children:
                # One that SIGTERM ends had not begun: a process that consumes handles the signal and ends with 0.
                if child.look() not in (None, _exit.OK, -signal.SIGTERM):
                    worst = _exit.FAILED
            if late:
                log.error("process.killed", extra={"after": f"{self._grace + EXTRA:g}"})
            time.sleep(STEP)
        return worst
