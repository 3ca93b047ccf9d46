"""Trying a step of a declaration again where the server answers that it cannot just now, as clients of AWS do."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from mqkit._chance import chance
from mqkit.backends.sqs.errors import may_pass
from mqkit.errors import MqkitError

PAUSES = (0.1, 0.2, 0.4, 0.8)  # seconds at most, each before a step is tried again
LONGEST = 5.0  # seconds of one step, after which it is not

P = ParamSpec("P")
T = TypeVar("T")


def patiently(step: Callable[P, T]) -> Callable[P, T]:
    """
    For what only looks, or makes what may be there already, or looks before it writes: a failed attempt may have had its
    effect, and others may have written since.
    """

    @functools.wraps(step)
    def again(*args: P.args, **kwargs: P.kwargs) -> T:
        until = time.monotonic() + LONGEST
        for pause in PAUSES:
            try:
                return step(*args, **kwargs)
            except MqkitError as exc:
                if not may_pass(exc) or time.monotonic() > until:
                    raise
            time.sleep(pause * (1 + chance()) / 2)  # those that were throttled together come apart
        return step(*args, **kwargs)

    return again
