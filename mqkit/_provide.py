"""What handler parameters receive beside the payload: a recipe per handler, found by annotation, cooked per delivery."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any, Literal

from mqkit.errors import ConfigError
from mqkit.handlers import Provider, hints_of, positional, show
from mqkit.message import Delivery

Kind = Literal["value", "awaited", "entered", "async entered"]


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """Which parameters of a function receive which types: by name, but for those that have none for a caller."""

    by_position: tuple[Any, ...] = ()
    by_name: tuple[tuple[str, Any], ...] = ()

    @property
    def types(self) -> tuple[Any, ...]:
        return (*self.by_position, *(type for _, type in self.by_name))

    def fill(self, values: Mapping[Any, Any]) -> tuple[list[Any], dict[str, Any]]:
        return [values[type] for type in self.by_position], {name: values[type] for name, type in self.by_name}


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """Make the value of one provided type from values made before."""

    type: Any
    make: Callable[..., Any]
    kind: Kind
    slots: Slots

    def enter(self, values: Mapping[Any, Any], stack: ExitStack | AsyncExitStack) -> Any:
        """Only where the factory is not asynchronous."""
        arguments, named = self.slots.fill(values)
        value = self.make(*arguments, **named)
        return stack.enter_context(value) if self.kind == "entered" else value

    async def aenter(self, values: Mapping[Any, Any], stack: AsyncExitStack) -> Any:
        value = self.enter(values, stack)
        if self.kind == "async entered":
            return await stack.enter_async_context(value)
        return await value if self.kind == "awaited" else value


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """In which order to call which factories, so that each provided type is made once per delivery, however many need it."""

    given: Mapping[Any, Any]
    steps: tuple[Step, ...]
    slots: Slots

    @property
    def wants_delivery(self) -> bool:
        return Delivery in self.slots.types

    @property
    def trivial(self) -> bool:
        """Nothing but, at most, the delivery."""
        return not self.steps and self.slots.types in ((), (Delivery,))

    def make(self, work: Any, stack: ExitStack) -> tuple[list[Any], dict[str, Any]]:
        values = {**self.given, Delivery: work}
        for step in self.steps:
            values[step.type] = step.enter(values, stack)
        return self.slots.fill(values)

    async def amake(self, work: Any, stack: AsyncExitStack) -> tuple[list[Any], dict[str, Any]]:
        values = {**self.given, Delivery: work}
        for step in self.steps:
            values[step.type] = await step.aenter(values, stack)
        return self.slots.fill(values)


def recipe_for(
    handler: Callable[..., Any], providers: Mapping[Any, Provider], given: Mapping[Any, Any], *, asynchronous: bool
) -> Recipe:
    """
    Args:
        given: Values by type that need no factory.
        asynchronous: May factories be async?

    Raises:
        ConfigError: Nothing provides a parameter, providers need each other, or an async one stands behind a `def`.
    """
    available = {Delivery, *given, *providers}
    made_here = {type: provider for type, provider in providers.items() if type not in given}
    slots = _slots(handler, show(handler), available, skip_first=True)
    return Recipe(given, tuple(_steps(slots.types, made_here, available, show(handler), asynchronous)), slots)


def worker_steps(
    providers: Mapping[Any, Provider], given: Mapping[Any, Any], *, asynchronous: bool
) -> tuple[Step, ...]:
    """
    How to make the values of `per="worker"` providers, each after those it needs.

    Raises:
        ConfigError: As for a recipe, and for a factory that needs what exists per delivery only.
    """
    lasting = {type: provider for type, provider in providers.items() if provider.per == "worker"}
    for type, provider in lasting.items():
        for needed in _annotations(provider.factory):
            if needed is Delivery or (_in(needed, providers) and needed not in lasting and needed not in given):
                raise ConfigError(
                    f'provide({_show(type)}, per="worker"): its factory {show(provider.factory)} needs {_show(needed)}, '
                    "which is there for each delivery only"
                )
    made_here = {type: provider for type, provider in lasting.items() if type not in given}
    return tuple(_steps(tuple(made_here), made_here, {*given, *lasting}, "the worker", asynchronous))


def _steps(
    wanted: tuple[Any, ...], providers: Mapping[Any, Provider], available: set[Any], asker: str, asynchronous: bool
) -> list[Step]:
    """What has to be made to have `wanted`, each after what it needs."""
    steps: dict[Any, Step] = {}

    def step(type: Any, above: tuple[Any, ...]) -> None:
        if type in above:
            raise ConfigError(f"{asker}: the providers of {_show(type)} need each other")
        if type in steps or not _in(type, providers):
            return
        factory = providers[type].factory
        slots = _slots(factory, asker, available, skip_first=False)
        for needed in slots.types:
            step(needed, (*above, type))
        make, kind = _kind_of(factory)
        if kind in ("awaited", "async entered") and not asynchronous:
            raise ConfigError(f"{asker} is a def and cannot wait for the async provider of {_show(type)}")
        steps[type] = Step(type, make, kind, slots)

    for type in wanted:
        step(type, ())
    return list(steps.values())


def _slots(target: Callable[..., Any], asker: str, available: set[Any], *, skip_first: bool) -> Slots:
    parameters = positional(target) if _inspectable(target) else []
    if skip_first and parameters[0].kind is not inspect.Parameter.KEYWORD_ONLY:
        del parameters[0]
    hints = hints_of(target) if parameters else {}
    by_position: list[Any] = []
    by_name: list[tuple[str, Any]] = []
    left_out = None
    for one in parameters:
        type = _provided(hints.get(one.name), available)
        nameless = one.kind is inspect.Parameter.POSITIONAL_ONLY
        if not _in(type, available):
            if one.default is inspect.Parameter.empty:
                raise ConfigError(
                    f"{asker}: nothing provides parameter {one.name!r} ({_show(type)}) of {show(target)}; annotate it with "
                    "Delivery, Bus or AsyncBus, or register provide(type, factory)"
                )
            left_out = one.name if nameless else left_out
        elif not nameless:
            by_name.append((one.name, type))
        elif left_out is None:
            by_position.append(type)
        else:
            raise ConfigError(
                f"{asker}: parameter {one.name!r} of {show(target)} is positional-only and stands behind {left_out!r}, which "
                "nothing provides; remove the /"
            )
    return Slots(tuple(by_position), tuple(by_name))


def _annotations(factory: Callable[..., Any]) -> list[Any]:
    if not _inspectable(factory):
        return []
    hints = hints_of(factory)
    return [_plain(hints.get(one.name)) for one in positional(factory)]


def _plain(annotation: Any) -> Any:
    """`Delivery[str]` asks for a Delivery."""
    return Delivery if typing.get_origin(annotation) is Delivery else annotation


def _provided(annotation: Any, available: set[Any]) -> Any:
    """The type a parameter asks for: of `X | None`, X where that is available."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and not _in(annotation, available):
        members = [_plain(member) for member in typing.get_args(annotation) if member is not type(None)]
        if len(members) == 1 and _in(members[0], available):
            return members[0]
    return _plain(annotation)


def _kind_of(factory: Callable[..., Any]) -> tuple[Callable[..., Any], Kind]:
    if inspect.isgeneratorfunction(factory):
        return contextmanager(factory), "entered"
    if inspect.isasyncgenfunction(factory):
        return asynccontextmanager(factory), "async entered"
    return factory, "awaited" if inspect.iscoroutinefunction(factory) else "value"


def _in(type: Any, known: Any) -> bool:
    try:
        return type in known
    except TypeError:  # unhashable annotations are nobody's provided type
        return False


def _show(type: Any) -> str:
    return getattr(type, "__name__", None) or repr(type)


def _inspectable(target: Any) -> bool:
    try:
        inspect.signature(target)
    except (TypeError, ValueError):
        return False
    return True
