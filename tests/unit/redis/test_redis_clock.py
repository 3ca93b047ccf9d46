"""The server's clock."""

from __future__ import annotations

import time

import pytest

from mqkit.backends.redis.clock import ServerClock, ticks


def test_it_is_this_machines_until_a_server_was_asked() -> None:
    assert ServerClock().now() == pytest.approx(time.time(), abs=5.0)


def test_it_is_the_servers_from_the_first_answer_on_and_never_steps() -> None:
    clock, now = ServerClock(), ticks()
    clock.read(1000.0, now - 60.0, now)
    assert clock.now() == pytest.approx(1030.0, abs=5.0)  # in the middle of that minute it was 1000
    clock.read(2000.0, now, now)
    assert clock.now() == pytest.approx(1030.0, abs=5.0)
