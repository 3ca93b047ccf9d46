"""Handlers: which function takes which messages, and how. Registrations without a connection."""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, overload

from mqkit._schema import is_wider
from mqkit.destinations import Broadcast, Destination, Queue, Topic, check_name
from mqkit.errors import ConfigError
from mqkit.message import Delivery, Message
from mqkit.patterns.retry import Retry

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R", None, Coroutine[Any, Any, None])
V = TypeVar("V")

Promise = Literal["at_most_once", "at_least_once", "exactly_once"]
Middleware = Callable[[Delivery[Any]], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]
Where = Callable[[Message], bool]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """
    Hand messages over in lists: as soon as `size` are there, or `age` seconds after the first one came.

    Args:
        size: 1 to 10,000.
        age: Seconds, counted from the first message of the batch.
    """

    size: int
    age: float

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or not 1 <= self.size <= 10_000:
            raise ConfigError(f"Batch(size={self.size!r}): a whole number from 1 to 10000")
        if not (isinstance(self.age, (int, float)) and math.isfinite(self.age) and self.age >= 0):
            raise ConfigError(f"Batch(age={self.age!r}): seconds, 0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """How to make what a handler parameter of a type receives."""

    factory: Callable[..., Any]
    per: Literal["delivery", "worker"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """One handler of one source, with its options as given to `on`."""

    source: Destination[Any]
    handler: Callable[..., Any]
    group: str | None
    start: Literal["latest", "earliest"]
    batch: Batch | None
    concurrency: int
    retry: Retry | None
    timeout: float | None
    order: Literal["none", "key"] | None
    promise: Promise
    where: Where | None
    settle: Literal["auto", "manual"]

    @property
    def name(self) -> str:
        """As in `mqkit.toml` and on the command line: `emails`, `orders/billing`, `broadcast:ticks`."""
        if isinstance(self.source, Broadcast):
            return f"broadcast:{self.source.name}"
        return f"{self.source.name}/{self.group}" if self.group else self.source.name


class _On(Protocol[T]):
    """What `on` returns: a decorator that gives the handler back unchanged."""

    def __call__(self, handler: Callable[Concatenate[T, P], R], /) -> Callable[Concatenate[T, P], R]: ...


class Handlers:
    """
    Registrations to be included into a bus. Making one opens nothing; a `Bus` is one too.

    Registration is final when a worker starts.
    """

    def __init__(self) -> None:
        self._registrations: list[Registration] = []
        self._providers: dict[Any, Provider] = {}
        self._middlewares: list[Middleware] = []
        self._parts: list[Handlers] = []

    @overload
    def on(
        self,
        source: Topic[T],
        *,
        group: str,
        start: Literal["latest", "earliest"] = ...,
        concurrency: int = ...,
        retry: Retry | None = ...,
        timeout: float | None = ...,
        order: Literal["none", "key"] | None = ...,
        promise: Promise = ...,
        where: Where | None = ...,
        settle: Literal["auto", "manual"] = ...,
    ) -> _On[T]: ...
    @overload
    def on(
        self,
        source: Topic[T],
        *,
        group: str,
        batch: Batch,
        start: Literal["latest", "earliest"] = ...,
        concurrency: int = ...,
        retry: Retry | None = ...,
        timeout: float | None = ...,
        order: Literal["none", "key"] | None = ...,
        promise: Promise = ...,
        where: Where | None = ...,
        settle: Literal["auto", "manual"] = ...,
    ) -> _On[list[Delivery[T]]]: ...
    @overload
    def on(
        self,
        source: Queue[T],
        *,
        concurrency: int = ...,
        retry: Retry | None = ...,
        timeout: float | None = ...,
        order: Literal["none", "key"] | None = ...,
        promise: Promise = ...,
        where: Where | None = ...,
        settle: Literal["auto", "manual"] = ...,
    ) -> _On[T]: ...
    @overload
    def on(
        self,
        source: Queue[T],
        *,
        batch: Batch,
        concurrency: int = ...,
        retry: Retry | None = ...,
        timeout: float | None = ...,
        order: Literal["none", "key"] | None = ...,
        promise: Promise = ...,
        where: Where | None = ...,
        settle: Literal["auto", "manual"] = ...,
    ) -> _On[list[Delivery[T]]]: ...
    @overload
    def on(
        self, source: Broadcast[T], *, concurrency: int = ..., timeout: float | None = ..., where: Where | None = ...
    ) -> _On[T]: ...
    def on(
        self,
        source: Any,
        *,
        group: str | None = None,
        start: Literal["latest", "earliest"] = "latest",
        batch: Batch | None = None,
        concurrency: int = 8,
        retry: Retry | None = None,
        timeout: float | None = None,
        order: Literal["none", "key"] | None = None,
        promise: Promise = "at_least_once",
        where: Where | None = None,
        settle: Literal["auto", "manual"] = "auto",
    ) -> Any:
        """
        Register the decorated function, `def` or `async def`, as the handler of a source.

        It gets the payload first (a list of deliveries with `batch`), then what its annotations name: `Delivery`, `Bus`,
        `AsyncBus` or provided types. Returning settles the message, raising lets `retry` decide.

        Args:
            source: Queue, Topic or Broadcast.
            group: Who shares the work of a topic; required there, refused elsewhere.
            start: Where a new group begins: "latest", or "earliest" where the topic retains.
            batch: Handle lists.
            concurrency: Handlers at once in this process (with `batch`: batches).
            retry: Retry policy; `Retry()` if left out.
            timeout: Seconds one handler may take, then the attempt fails with `TimedOut`. An `async def` is cancelled; a
                thread cannot be stopped, so a `def` is reported stuck and fails when it ends.
            order: "key" runs one message of a key at a time, in publish order, also while one is retried; "none" promises
                nothing. Left out: "key" where the destination declares `key=`.
            promise: "at_most_once" settles right before the handler runs and never retries, without order by key;
                "exactly_once" settles together with what `delivery.publish` staged, in one transaction.
            where: Asked before decoding; False skips the message, settled as done and counted.
            settle: "manual" leaves settling to `delivery.ack`, `retry`, `reject` or `fail`.

        Raises:
            ConfigError: Now, for what is wrong in itself; when the bus starts, for what its backend cannot do.
        """
        registration = Registration(
            source=source,
            handler=_unset,
            group=group,
            start=start,
            batch=batch,
            concurrency=concurrency,
            retry=retry,
            timeout=timeout,
            order=order,
            promise=promise,
            where=where,
            settle=settle,
        )
        check(registration)

        def register(handler: Callable[..., Any]) -> Callable[..., Any]:
            complete = dataclasses.replace(registration, handler=handler)
            check_handler(complete)
            self._add(complete)
            return handler

        return register

    def provide(
        self, type: Any, factory: Callable[..., Any], *, per: Literal["delivery", "worker"] = "delivery"
    ) -> None:
        """
        What a handler parameter annotated with this type receives.

        Args:
            factory: Called with what its own annotations name. A generator function yields the value and is resumed
                after the handler, before the verdict: an exception there fails the attempt.
            per: "delivery": made for each; "worker": once, when consuming starts, until it ends.
        """
        if per not in ("delivery", "worker"):
            raise ConfigError(f'provide({type!r}): per={per!r} must be "delivery" or "worker"')
        if not callable(factory):
            raise ConfigError(f"provide({type!r}): the factory {factory!r} cannot be called; pass a function")
        self._open_for_registration()
        self._providers[type] = Provider(factory=factory, per=per)

    def wrap(self, middleware: Middleware) -> Middleware:
        """Enter the context manager that `middleware(delivery)` returns around each handler; the first added is outermost."""
        if not callable(middleware):
            raise ConfigError(f"wrap({middleware!r}): takes a function of a delivery that returns a context manager")
        if inspect.isgeneratorfunction(middleware) or inspect.isasyncgenfunction(middleware):
            raise ConfigError(
                f"wrap({show(middleware)}): a generator function is no context manager yet; decorate it with "
                "contextlib.contextmanager or asynccontextmanager"
            )
        if inspect.iscoroutinefunction(middleware):
            raise ConfigError(
                f"wrap({show(middleware)}): an async def returns no context manager; make it an asynccontextmanager"
            )
        self._open_for_registration()
        self._middlewares.append(middleware)
        return middleware

    def include(self, *parts: Handlers) -> None:
        """Take over the registrations of other Handlers, with their middleware; providers of this side win."""
        self._open_for_registration()
        for part in parts:
            if not isinstance(part, Handlers):
                raise ConfigError(f"include({part!r}): takes Handlers")
            if part is self or self in part._everything():
                raise ConfigError("include: these handlers include each other")
            self._parts.append(part)

    def _add(self, registration: Registration) -> None:
        self._open_for_registration()
        self._registrations.append(registration)

    def _open_for_registration(self) -> None:
        """Overridden by a bus, which is closed for it while it consumes."""

    def _everything(self) -> list[Handlers]:
        return [self, *(inner for part in self._parts for inner in part._everything())]

    def _collected(
        self, providers: dict[Any, Provider] | None = None, middlewares: tuple[Middleware, ...] = ()
    ) -> list[tuple[Registration, dict[Any, Provider], tuple[Middleware, ...]]]:
        """Every registration with the providers and middleware that apply to it, outermost first."""
        known = {**self._providers, **(providers or {})}
        around = (*middlewares, *self._middlewares)
        own = [(registration, known, around) for registration in self._registrations]
        return own + [entry for part in self._parts for entry in part._collected(known, around)]


def _unset(*_: Any) -> None: ...


def check(registration: Registration) -> None:
    """`ConfigError` for options that cannot be right on any backend."""
    source, name = registration.source, repr(registration.source)
    if not isinstance(source, (Queue, Topic, Broadcast)):
        raise ConfigError(f"on({source!r}): the source must be a Queue, Topic or Broadcast; texts are not destinations")
    if isinstance(source, Topic):
        if registration.group is None:
            raise ConfigError(f"on({name}): a topic needs group=, the name of those who share the work")
        check_name(registration.group, "group")
    elif registration.group is not None:
        raise ConfigError(f"on({name}): group={registration.group!r} is for topics; a {source.kind} has none")
    if registration.start not in ("latest", "earliest"):
        raise ConfigError(f'on({name}): start={registration.start!r} must be "latest" or "earliest"')
    if registration.start == "earliest" and not isinstance(source, Topic):
        raise ConfigError(f'on({name}): start="earliest" is for topics')
    if not isinstance(registration.concurrency, int) or not 1 <= registration.concurrency <= 10_000:
        raise ConfigError(
            f"on({name}): concurrency={registration.concurrency!r} must be a whole number from 1 to 10000"
        )
    timeout = registration.timeout
    if timeout is not None and not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise ConfigError(f"on({name}): timeout={timeout!r} must be seconds above 0")
    if registration.batch is not None and not isinstance(registration.batch, Batch):
        raise ConfigError(f"on({name}): batch={registration.batch!r} must be a Batch(size=..., age=...)")
    if registration.retry is not None and not isinstance(registration.retry, Retry):
        raise ConfigError(f"on({name}): retry={registration.retry!r} must be a Retry(...)")
    if registration.where is not None and not callable(registration.where):
        raise ConfigError(f"on({name}): where={registration.where!r} must be a function of a Message")
    if registration.order not in (None, "none", "key"):
        raise ConfigError(f'on({name}): order={registration.order!r} must be "key" or "none"')
    if registration.order == "key" and source.key is None:
        raise ConfigError(f'on({name}): order="key" needs a destination that declares key=')
    if registration.promise not in typing.get_args(Promise):
        raise ConfigError(f"on({name}): promise={registration.promise!r} must be one of {typing.get_args(Promise)}")
    if registration.promise == "at_most_once":
        if registration.retry is not None:
            raise ConfigError(f'on({name}): promise="at_most_once" never retries, so retry= has no meaning')
        if registration.settle == "manual":
            raise ConfigError(
                f'on({name}): promise="at_most_once" settles before the handler; settle="manual" has no meaning'
            )
        if source.key is not None and registration.order != "none" and not isinstance(source, Broadcast):
            raise ConfigError(
                f'on({name}): promise="at_most_once" settles before the handler, so the next message of a key may start '
                'elsewhere meanwhile; say order="none", or choose another promise'
            )
    if registration.settle not in ("auto", "manual"):
        raise ConfigError(f'on({name}): settle={registration.settle!r} must be "auto" or "manual"')
    if isinstance(source, Broadcast):
        for option, default in (("batch", None), ("retry", None), ("order", None), ("settle", "auto")):
            if getattr(registration, option) != default:
                raise ConfigError(
                    f"on({name}): {option}= has no meaning for a broadcast, which is live and at most once"
                )
        if registration.promise == "exactly_once":
            raise ConfigError(f"on({name}): a broadcast is at most once")


def check_handler(registration: Registration) -> None:
    """`ConfigError` for a handler whose own signature cannot work: payload type, return value, unannotated parameters."""
    handler, name = registration.handler, show(registration.handler)
    if not callable(handler):
        raise ConfigError(f"{handler!r} cannot be called; decorate a function")
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise ConfigError(f"handler {name} is a generator, which would never run; use a plain function")
    hints = hints_of(handler)
    if hints.get("return") not in (None, type(None)):
        raise ConfigError(
            f"handler {name} returns {hints['return']!r}; a handler's result is dropped, so annotate None"
        )
    parameters = positional(handler)
    if not parameters:
        raise ConfigError(f"handler {name} takes no parameter; its first one receives the payload")
    first = parameters[0]
    if not by_position(handler):
        raise ConfigError(f"handler {name}: the payload is passed by position, and {first.name!r} is keyword-only")
    annotation = hints.get(first.name, Any)
    if registration.batch is not None:
        if annotation is not Any and typing.get_origin(annotation) is not list and annotation is not list:
            raise ConfigError(
                f"handler {name}: with batch= the first parameter is a list[Delivery[...]], not {annotation!r}"
            )
    elif not is_wider(annotation, registration.source.type):
        raise ConfigError(
            f"handler {name}: {first.name}: {annotation!r} cannot take every payload of {registration.source!r}, "
            f"which is {registration.source.type!r}"
        )


def positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters a caller may fill, variadic ones left out."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one for one in inspect.signature(function).parameters.values() if one.kind not in kinds]


def by_position(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters that take what is passed without a name."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return [one for one in inspect.signature(function).parameters.values() if one.kind not in kinds]


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations, resolved. `ConfigError` when a name in them is not known at module level."""
    target: Any = function
    while hasattr(target, "func"):  # functools.partial
        target = target.func
    if inspect.isclass(target):
        target = target.__init__
    elif not inspect.isroutine(target):
        target = type(target).__call__
    try:
        return typing.get_type_hints(target)
    except NameError as exc:
        raise ConfigError(
            f"annotations of {show(function)} cannot be resolved: {exc}; define the type at module level"
        ) from exc


def show(function: Any) -> str:
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"


def same_source_twice(registrations: Iterable[Registration]) -> str | None:
    """The name of a queue or group with two handlers, which would steal each other's messages."""
    seen: set[str] = set()
    for registration in registrations:
        if registration.name in seen and not isinstance(registration.source, Broadcast):
            return registration.name
        seen.add(registration.name)
    return None
