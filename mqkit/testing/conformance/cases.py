"""Cases: the numbered claims of the suite, and what a backend must be able to do before one is asked of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import pytest

from mqkit.backends.base import Capabilities
from mqkit.testing.conformance.harness import HOOKS, Harness

F = TypeVar("F", bound=Callable[..., Any])

GATES = frozenset([*Capabilities.__dataclass_fields__, *HOOKS])


def case(id: str, *, needs: Sequence[str] = ()) -> Callable[[F], F]:
    """
    Mark a test method as a case; it takes the fixture `harness`.

    Args:
        id: As in the checklist, such as "C.08".
        needs: Capabilities that must be true, or hooks the harness must offer. Without one of them the case is skipped
            and the reason names it.
    """
    if unknown := set(needs) - GATES:
        raise ValueError(f"case {id} needs {sorted(unknown)}, which are neither capabilities nor hooks of the harness")

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def gated(self: object, harness: Harness, *args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            if missing := lacking(harness, needs):
                pytest.skip(f"{id} needs {missing}, which {harness.capabilities.name} does not have")
            return method(self, harness, *args, **kwargs)

        return cast("F", pytest.mark.mqkit_case(id)(gated))

    return decorate


def lacking(harness: Harness, needs: Sequence[str]) -> str | None:
    """The first capability or hook that is not there."""
    for need in needs:
        there = harness.offers(need) if need in HOOKS else getattr(harness.capabilities, need)
        if not there or there == "unknown":
            return need
    return None
