"""What handler parameters receive beside the payload: a recipe per handler, found by annotation, cooked per delivery."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal

from mqkit.errors import ConfigError
from mqkit.handlers import Provider, hints_of, positional, show
from mqkit.message import Delivery

Kind = Literal["value", "awaited", "entered", "async entered"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Step:
    """Make the value of one provided type from values made before."""

    type: Any
    make: Callable[..., Any]
    kind: Kind
    arguments: tuple[tuple[str, Any], ...]  # parameter name, type


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """In which order to call which factories, so that each provided type is made once per delivery, however many need it."""

    given: Mapping[Any, Any]
    steps: tuple[_Step, ...]
    arguments: tuple[tuple[str, Any], ...]

    @property
    def wants_delivery(self) -> bool:
        return any(type is Delivery for _, type in self.arguments)

    @property
    def trivial(self) -> bool:
        """Nothing but, at most, the delivery as second positional parameter."""
        return not self.steps and all(type is Delivery for _, type in self.arguments) and len(self.arguments) <= 1

    def make(self, work: Any, stack: ExitStack) -> dict[str, Any]:
        values = {**self.given, Delivery: work}
        for step in self.steps:
            value = step.make(**{name: values[type] for name, type in step.arguments})
            values[step.type] = stack.enter_context(value) if step.kind == "entered" else value
        return {name: values[type] for name, type in self.arguments}

    async def amake(self, work: Any, stack: AsyncExitStack) -> dict[str, Any]:
        values = {**self.given, Delivery: work}
        for step in self.steps:
            value = step.make(**{name: values[type] for name, type in step.arguments})
            if step.kind == "entered":
                value = stack.enter_context(value)
            elif step.kind == "async entered":
                value = await stack.enter_async_context(value)
            elif step.kind == "awaited":
                value = await value
            values[step.type] = value
        return {name: values[type] for name, type in self.arguments}


def recipe_for(
    function: Callable[..., Any],
    providers: Mapping[Any, Provider],
    given: Mapping[Any, Any],
    *,
    skip_first: bool,
    asynchronous: bool,
) -> Recipe:
    """
    Args:
        given: Values by type that need no factory.
        skip_first: The first parameter is the payload.
        asynchronous: May factories be async?

    Raises:
        ConfigError: Nothing provides a parameter, providers need each other, or an async one stands behind a `def`.
    """
    steps: dict[Any, _Step] = {}

    def arguments(target: Callable[..., Any], skip: int, above: tuple[Any, ...]) -> tuple[tuple[str, Any], ...]:
        parameters = positional(target)[skip:] if _inspectable(target) else []
        hints = hints_of(target) if parameters else {}
        found = []
        for one in parameters:
            type = hints.get(one.name)
            type = Delivery if typing.get_origin(type) is Delivery else type
            known = type is Delivery or _in(type, given) or _in(type, providers)
            if one.default is not inspect.Parameter.empty and not known:
                continue
            if not known:
                raise ConfigError(
                    f"{show(function)}: nothing provides parameter {one.name!r} ({type!r}) of {show(target)}; annotate it with "
                    "Delivery, Bus or AsyncBus, or register provide(type, factory)"
                )
            if _in(type, providers) and not _in(type, given):
                step(type, above)
            found.append((one.name, type))
        return tuple(found)

    def step(type: Any, above: tuple[Any, ...]) -> None:
        if type in above:
            raise ConfigError(f"{show(function)}: the providers of {type!r} need each other")
        if type in steps:
            return
        factory = providers[type].factory
        needs = arguments(factory, 0, (*above, type))
        make, kind = _kind_of(factory)
        if kind in ("awaited", "async entered") and not asynchronous:
            raise ConfigError(f"{show(function)} is a def and cannot wait for the async provider of {type!r}")
        steps[type] = _Step(type, make, kind, needs)  # after what it needs: dicts keep their order

    own = arguments(function, 1 if skip_first else 0, ())
    return Recipe(given, tuple(steps.values()), own)


def _kind_of(factory: Callable[..., Any]) -> tuple[Callable[..., Any], Kind]:
    if inspect.isgeneratorfunction(factory):
        return contextmanager(factory), "entered"
    if inspect.isasyncgenfunction(factory):
        return asynccontextmanager(factory), "async entered"
    return factory, "awaited" if inspect.iscoroutinefunction(factory) else "value"


def _in(type: Any, known: Mapping[Any, Any]) -> bool:
    try:
        return type in known
    except TypeError:  # unhashable annotations are nobody's provided type
        return False


def _inspectable(target: Any) -> bool:
    try:
        inspect.signature(target)
    except (TypeError, ValueError):
        return False
    return True
