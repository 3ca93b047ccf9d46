"""Retry: how often, how long, after which errors. Pure: time and chance come in as arguments."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from mqkit._text import text_of
from mqkit.errors import ConfigError, Undecodable
from mqkit.verdicts import Ack, Reject, RetryLater, Verdict


@dataclasses.dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between attempts; made by `exponential`, `linear` or `fixed`."""

    kind: Literal["exponential", "linear", "fixed"]
    step: float
    cap: float
    jitter: bool

    def __post_init__(self) -> None:
        for name in ("step", "cap"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value >= 0):
                raise ConfigError(f"{self.kind} back-off: {value!r} is not a number of seconds, 0 or more")

    def seconds(self, attempt: int, chance: float) -> float:
        """
        The wait after a failed attempt.

        Args:
            attempt: The attempt that failed, from 1.
            chance: From 0.0 to 1.0. With jitter the wait is that share of the full one, so that waits of many clients
                spread over the whole range also at the cap.
        """
        if self.kind == "exponential":
            full = min(self.cap, math.ldexp(self.step, min(attempt - 1, 1000)) if self.step < 1e300 else self.cap)
        elif self.kind == "linear":
            full = min(self.cap, self.step * attempt)
        else:
            full = self.step
        return full * chance if self.jitter else full


def exponential(*, base: float = 0.5, cap: float = 60.0, jitter: bool = True) -> Backoff:
    """Waits up to base, 2 base, 4 base ... seconds, at most `cap`; full jitter draws from 0 to that."""
    return Backoff("exponential", base, cap, jitter)


def linear(*, step: float, cap: float, jitter: bool = True) -> Backoff:
    """Waits up to step, 2 step, 3 step ... seconds, at most `cap`."""
    return Backoff("linear", step, cap, jitter)


def fixed(seconds: float, *, jitter: bool = False) -> Backoff:
    """Waits the same time after each attempt."""
    return Backoff("fixed", seconds, seconds, jitter)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Retry:
    """
    What happens after a failed attempt.

    Args:
        attempts: Tries in all, the first included; None for no limit.
        within: Seconds after the first failure in which a new try may start; None for no limit.
        backoff: The waits.
        on: Exceptions that are retried. `Exception` stands also for what is none and ends a handler all the same: a
            `SystemExit`, the cancellation of something the handler waited for.
        never: Exceptions that go to the dead letters at once. Of two listed classes the one nearer to the exception
            decides; `never` wins a tie; what neither lists is not retried.
        crashes: Hand-outs that ended with the death of their process before the message is run alone, once, and then
            dead-lettered.
    """

    attempts: int | None = 5
    within: float | None = None
    backoff: Backoff = exponential()  # noqa: RUF009  a frozen value
    on: tuple[type[BaseException], ...] = (Exception,)
    never: tuple[type[BaseException], ...] = ()
    crashes: int = 10

    def __post_init__(self) -> None:
        if self.attempts is not None and (not isinstance(self.attempts, int) or self.attempts < 1):
            raise ConfigError(f"Retry(attempts={self.attempts!r}): at least 1, or None for no limit")
        if self.within is not None and not (isinstance(self.within, (int, float)) and self.within > 0):
            raise ConfigError(f"Retry(within={self.within!r}): seconds above 0, or None for no limit")
        if not isinstance(self.crashes, int) or self.crashes < 1:
            raise ConfigError(f"Retry(crashes={self.crashes!r}): at least 1")
        if not isinstance(self.backoff, Backoff):
            raise ConfigError(f"Retry(backoff={self.backoff!r}): made by exponential, linear or fixed")
        for name in ("on", "never"):
            errors = getattr(self, name)
            if not isinstance(errors, tuple):
                raise ConfigError(f"Retry({name}={errors!r}): a tuple of exception classes, such as (ValueError,)")
            for error in errors:
                if not (isinstance(error, type) and issubclass(error, BaseException)):
                    raise ConfigError(f"Retry({name}=...): {error!r} is not an exception class")

    def wants(self, error: BaseException) -> bool:
        """Does the policy list this exception as one to retry?"""
        for cls in type(error).__mro__:
            if cls in self.never:
                return False
            if cls in self.on:
                return True
        return Exception in self.on and not isinstance(error, Exception)


def judge(policy: Retry, error: BaseException, *, attempt: int, waited: float, chance: float) -> Verdict:
    """
    The verdict on a failed attempt.

    Args:
        error: What the handler raised; one of the verdicts decides by itself, within the limits.
        attempt: The attempt that failed, from 1.
        waited: Seconds since the first failure of this message, 0 on the first.
        chance: 0.0 to 1.0, for jitter.
    """
    if isinstance(error, (Ack, Reject)):
        return error
    if isinstance(error, Undecodable):
        return Reject(f"undecodable: {error}")
    explicit = isinstance(error, RetryLater)
    name, text = type(error).__name__, text_of(error)
    if not explicit and not policy.wants(error):
        return Reject(f"{name}, which is not retried: {text}")
    if policy.attempts is not None and attempt >= policy.attempts:
        return Reject(f"{name} after {attempt} attempt{'s' * (attempt != 1)}: {text}")
    after = error.after if isinstance(error, RetryLater) else policy.backoff.seconds(attempt, chance)
    if policy.within is not None and waited + after > policy.within:
        return Reject(f"{name} after {attempt} attempts in {waited:.1f} s, within={policy.within:g}: {text}")
    return RetryLater(after=after, reason=text)
