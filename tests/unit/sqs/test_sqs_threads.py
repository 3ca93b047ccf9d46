"""Threads for calls that block."""

from __future__ import annotations

import pytest

from mqkit.backends.sqs.threads import Workers


def fail() -> int:
    raise KeyError("of a driver")


def test_a_job_that_fails_is_heard_of_and_takes_no_thread_with_it() -> None:
    workers = Workers(2, "test")

    for _ in range(3):
        with pytest.raises(KeyError):
            workers.each([lambda: 1, fail, fail])

    assert workers.each([lambda: 1, lambda: 2, lambda: 3, lambda: 4]) == [1, 2, 3, 4]
    workers.close()
