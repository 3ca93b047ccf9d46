"""Signals become an event, wherever they find the main thread."""

from __future__ import annotations

import signal

import pytest

from mqkit._stopping import stopping


@pytest.mark.timeout(20)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_finds_the_main_thread_inside_of_its_wait_stops_it(number: signal.Signals):
    with stopping() as stop:
        with stop._cond:  # type: ignore[attr-defined]  # as `wait` has it for a moment
            signal.raise_signal(number)
            signal.raise_signal(number)  # soon after, so the same wish

        assert stop.wait(10.0)
