"""The retry policy is a pure function, so every claim here needs neither clock nor broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqkit import Reject, Retry, RetryLater, exponential, fixed, linear
from mqkit.errors import ConfigError, Undecodable
from mqkit.patterns.retry import judge


class Declined(ConnectionError):
    pass


def verdict(policy: Retry, error: BaseException, *, attempt: int = 1, waited: float = 0.0, chance: float = 1.0):
    return judge(policy, error, attempt=attempt, waited=waited, chance=chance)


def test_waits_double_up_to_the_cap():
    backoff = exponential(base=0.5, cap=60.0)
    assert [backoff.seconds(attempt, 1.0) for attempt in (1, 2, 3, 8, 5000)] == [0.5, 1.0, 2.0, 60.0, 60.0]


def test_linear_waits_grow_by_one_step():
    assert [linear(step=2.0, cap=5.0).seconds(attempt, 1.0) for attempt in (1, 2, 3)] == [2.0, 4.0, 5.0]


def test_a_fixed_wait_ignores_chance_unless_jitter_is_asked_for():
    assert fixed(3.0).seconds(7, 0.1) == 3.0
    assert fixed(3.0, jitter=True).seconds(7, 0.5) == 1.5


@given(attempt=st.integers(1, 10_000), chance=st.floats(0.0, 1.0), base=st.floats(0.0, 1e6), cap=st.floats(0.0, 1e6))
def test_a_wait_is_never_negative_and_never_over_the_cap(attempt: int, chance: float, base: float, cap: float):
    assert 0.0 <= exponential(base=base, cap=cap).seconds(attempt, chance) <= cap


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_jitter_still_spreads_at_the_cap(one: float, other: float):
    backoff = exponential(base=1.0, cap=10.0)
    assert (backoff.seconds(100, one) == backoff.seconds(100, other)) == (10.0 * one == 10.0 * other)


def test_exactly_the_allowed_attempts_are_made():
    policy = Retry(attempts=3)
    outcomes = [type(verdict(policy, ValueError(), attempt=attempt)) for attempt in (1, 2, 3)]
    assert outcomes == [RetryLater, RetryLater, Reject]


def test_the_nearest_listed_class_decides_and_never_wins_a_tie():
    policy = Retry(on=(ConnectionError, Declined), never=(OSError, Declined))
    assert isinstance(verdict(policy, ConnectionResetError()), RetryLater)
    assert isinstance(verdict(policy, FileNotFoundError()), Reject)
    assert isinstance(verdict(policy, Declined()), Reject)


def test_an_error_nobody_lists_is_a_dead_letter_at_once():
    assert isinstance(verdict(Retry(on=(OSError,)), ValueError("bad")), Reject)


def test_an_undecodable_message_is_never_retried():
    assert isinstance(verdict(Retry(attempts=None), Undecodable("no")), Reject)


def test_a_raised_verdict_decides_within_the_limits():
    policy = Retry(attempts=2, on=())
    assert verdict(policy, RetryLater(after=7.0)).after == 7.0
    assert isinstance(verdict(policy, RetryLater(after=7.0), attempt=2), Reject)
    assert verdict(policy, Reject("why")).reason == "why"


def test_no_try_starts_after_the_time_allowed():
    policy = Retry(attempts=None, within=10.0, backoff=fixed(4.0))
    assert isinstance(verdict(policy, ValueError(), attempt=99, waited=6.0), RetryLater)
    assert isinstance(verdict(policy, ValueError(), attempt=2, waited=6.1), Reject)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry(attempts=0),
        lambda: Retry(within=0.0),
        lambda: Retry(crashes=0),
        lambda: Retry(within="5"),
        lambda: Retry(on=("ValueError",)),
        lambda: Retry(on=ValueError),
        lambda: Retry(never=[ValueError]),
        lambda: Retry(backoff=lambda attempt: 1.0),
        lambda: exponential(base=-1.0),
        lambda: fixed(float("nan")),
        lambda: linear(step=1.0, cap=float("inf")),
    ],
)
def test_a_policy_that_cannot_work_is_refused_when_it_is_made(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("after", [-1.0, float("inf"), float("nan"), "5"])
def test_a_wait_that_is_no_time_cannot_be_asked_for(after: object):
    with pytest.raises(ValueError, match="seconds"):
        RetryLater(after=after)


def test_what_ends_a_handler_and_is_no_exception_is_retried_where_every_exception_is():
    assert isinstance(verdict(Retry(), SystemExit(1)), RetryLater)
    assert isinstance(verdict(Retry(never=(SystemExit,)), SystemExit(1)), Reject)
    assert isinstance(verdict(Retry(on=(OSError,)), SystemExit(1)), Reject)


def test_an_exception_may_be_the_reason():
    assert Reject(ValueError("no such account")).reason == "no such account"


class Unspeakable(Exception):
    def __str__(self) -> str:
        return self.text  # never set


def test_an_exception_without_a_text_is_judged_like_any_other():
    assert isinstance(verdict(Retry(), Unspeakable()), RetryLater)
    assert "Unspeakable" in verdict(Retry(attempts=1), Unspeakable()).reason
