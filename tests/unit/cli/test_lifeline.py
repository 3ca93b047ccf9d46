"""The socket between `mqkit run` and its processes."""

from __future__ import annotations

import select
import socket
import threading

import pytest

from mqkit.cli import _lifeline
from mqkit.cli._lifeline import Lifeline, Reports
from mqkit.errors import ConfigError, Unavailable
from mqkit.health import Health


def pair() -> tuple[Reports, socket.socket, Lifeline]:
    ours, theirs = socket.socketpair()
    return Reports(ours), ours, Lifeline(theirs.detach())


def read(reports: Reports, end: socket.socket) -> None:
    """The next report. A test that waits for more than there is fails after a while."""
    while not reports.read():
        assert select.select([end], [], [], 10.0)[0]


def test_a_parent_that_does_not_read_for_a_while_gets_whole_reports_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_lifeline, "EVERY", 0.02)
    reports, end, line = pair()
    long = Health(True, False, ["x" * 1_000_000])  # more than the socket holds
    asked = threading.Semaphore(0)

    def health() -> Health:
        asked.release()
        return long

    with line:
        line.report(health)
        assert asked.acquire(timeout=10.0)
        asked.acquire(timeout=0.2)  # ten times as long as the first attempt to send may take
        for _ in range(3):
            read(reports, end)
            assert reports.health == long
    reports.close()


@pytest.mark.parametrize(("error", "refused"), [(ConfigError, True), (Unavailable, False), (KeyError, False)])
def test_only_an_error_in_program_or_settings_says_that_another_start_is_useless(error: type[Exception], refused: bool):
    reports, _, line = pair()
    with pytest.raises(error), line:
        raise error("no")
    reports.read()
    assert reports.refused is refused
    reports.close()
