"""How one handler is called: decoding, middleware, provided values. Compiled when consuming starts."""

from __future__ import annotations

import contextvars
import dataclasses
import inspect
import typing
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Any

from mqkit._provide import Recipe, recipe_for
from mqkit.envelope import Envelope
from mqkit.errors import ConfigError, Undecodable
from mqkit.handlers import Middleware, Provider, Registration, by_position, hints_of, show
from mqkit.message import Delivery, current

Outcome = BaseException | None


class Interrupted(BaseException):
    """mqkit, or whoever ends the program, broke an attempt off: nobody's failure, so it is not counted."""


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """
    Either `run` (a plain function, on the pool) or `arun` (a coroutine function, on the loop); the other is None.

    Both take a delivery, or a list of them for a batch handler, decode and call, and return what was raised, or None.
    They never raise.
    """

    run: Callable[[Any], Outcome] | None
    arun: Callable[[Any], Awaitable[Outcome]] | None


def compile_call(
    registration: Registration,
    providers: Mapping[Any, Provider],
    middlewares: tuple[Middleware, ...],
    given: Mapping[Any, Any],
) -> Call:
    """
    Args:
        given: Values by type that are always there: Bus, AsyncBus, and those provided per worker.

    Raises:
        ConfigError: A parameter that nothing satisfies, or async parts around a `def` handler.
    """
    handler = registration.handler
    asynchronous = is_async(handler)
    recipe = recipe_for(handler, providers, given, asynchronous=asynchronous)
    if registration.batch is not None and recipe.wants_delivery:
        raise ConfigError(
            f"handler {show(handler)}: a batch handler has its deliveries in the list, not as a parameter"
        )
    for middleware in middlewares:
        _check_middleware(middleware, handler, asynchronous=asynchronous)
    batched = registration.batch is not None
    decode = _decode_all(registration) if batched else _decode_one(registration)
    if asynchronous:
        return Call(None, _async_runner(handler, decode, recipe, middlewares, batched=batched))
    decode_body = registration.source.schema.decode
    return Call(_sync_runner(handler, decode, decode_body, recipe, middlewares, batched=batched), None)


def is_async(handler: Any) -> bool:
    """The colour of a handler, asked here and nowhere else."""
    while hasattr(handler, "func"):
        handler = handler.func
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004


def _decode_one(registration: Registration) -> Callable[[Any], Any]:
    decode = registration.source.schema.decode

    def one(delivery: Delivery[Any]) -> Any:
        received = delivery._received
        payload = delivery.payload = decode(received.body, received.envelope)
        return payload

    return one


def _decode_all(registration: Registration) -> Callable[[Any], Any]:
    decode = registration.source.schema.decode

    def every(batch: list[Delivery[Any]]) -> list[Delivery[Any]]:
        """Those that decode; the others fail one by one, and their neighbours never notice."""
        good = []
        for delivery in batch:
            received = delivery._received
            try:
                delivery.payload = decode(received.body, received.envelope)
            except Undecodable as exc:
                delivery._settled = True
                delivery._holder.finish(delivery, exc)
            else:
                good.append(delivery)
        return good

    return every


def _sync_runner(
    handler: Callable[..., Any],
    decode: Callable[[Any], Any],
    decode_body: Callable[[bytes, Envelope], Any],
    recipe: Recipe,
    middlewares: tuple[Middleware, ...],
    *,
    batched: bool,
) -> Callable[[Any], Outcome]:
    def plain(work: Any) -> None:
        current.set(work)
        received = work._received
        payload = work.payload = decode_body(received.body, received.envelope)  # as `decode`, with a call less
        handler(payload)

    def plain_batch(work: Any) -> None:
        if batch := decode(work):
            handler(batch)

    def with_delivery(work: Any) -> None:
        current.set(work)
        handler(decode(work), work)

    def full(work: Any) -> None:
        if not batched:
            current.set(work)
        payload = decode(work)
        if batched and not payload:
            return
        error: BaseException | None = None
        with ExitStack() as stack:
            for middleware in middlewares:
                stack.enter_context(_sync(middleware(payload[0] if batched else work), middleware))
            arguments, named = recipe.make(work, stack)
            try:
                handler(payload, *arguments, **named)
            except BaseException as exc:
                error = exc
                raise
        if error is not None:  # a middleware swallowed it; the delivery failed all the same
            raise error

    if middlewares or not recipe.trivial or (recipe.wants_delivery and not _takes_delivery_second(handler, recipe)):
        body = full
    else:
        body = with_delivery if recipe.wants_delivery else plain_batch if batched else plain
    fresh_context = contextvars.copy_context().copy

    def run(work: Any) -> Outcome:
        try:
            fresh_context().run(body, work)
        except BaseException as exc:  # noqa: BLE001  whatever a handler raises is an outcome
            return exc
        return None

    return run


def _async_runner(
    handler: Callable[..., Any],
    decode: Callable[[Any], Any],
    recipe: Recipe,
    middlewares: tuple[Middleware, ...],
    *,
    batched: bool,
) -> Callable[[Any], Awaitable[Outcome]]:
    bare = not middlewares and recipe.trivial and not recipe.wants_delivery

    async def run(work: Any) -> Outcome:
        error: BaseException | None = None
        try:
            if not batched:
                current.set(work)
            payload = decode(work)
            if batched and not payload:
                return None
            if bare:
                await handler(payload)
                return None
            async with AsyncExitStack() as stack:
                for middleware in middlewares:
                    manager: Any = middleware(payload[0] if batched else work)
                    if hasattr(manager, "__aenter__"):
                        await stack.enter_async_context(manager)
                    else:
                        stack.enter_context(_sync(manager, middleware))
                arguments, named = await recipe.amake(work, stack)
                try:
                    await handler(payload, *arguments, **named)
                except BaseException as exc:
                    error = exc
                    raise
        except BaseException as exc:  # noqa: BLE001  whatever a handler raises is an outcome
            return exc
        return error  # None, or what a middleware swallowed

    return run


def _takes_delivery_second(handler: Callable[..., Any], recipe: Recipe) -> bool:
    """Can the delivery, which is all it wants, be passed right behind the payload?"""
    second = [one.name for one in by_position(handler)[1:2]]
    return bool(recipe.slots.by_position) or second == [name for name, _ in recipe.slots.by_name]


def _check_middleware(middleware: Middleware, handler: Callable[..., Any], *, asynchronous: bool) -> None:
    """`ConfigError` where it can be seen that what it returns cannot be entered around this handler."""
    made = _returned(middleware)
    known = isinstance(made, type) and made not in (Any, object)
    if inspect.isasyncgenfunction(inspect.unwrap(middleware)) or (
        known and hasattr(made, "__aenter__") and not hasattr(made, "__enter__")
    ):
        if not asynchronous:
            raise ConfigError(
                f"middleware {show(middleware)} is asynchronous and cannot stand around the def handler {show(handler)}"
            )
    elif known and not hasattr(made, "__enter__") and not inspect.isgeneratorfunction(inspect.unwrap(middleware)):
        raise ConfigError(f"middleware {show(middleware)} returns {made.__name__}, which is no context manager")


def _returned(middleware: Middleware) -> Any:
    """What it says to return, Any where it does not."""
    if inspect.isclass(middleware):
        return middleware
    try:
        made = hints_of(middleware).get("return", Any)
    except (ConfigError, TypeError):  # names known to a type checker only, or no function
        return Any
    return typing.get_origin(made) or made


def _sync(manager: Any, middleware: Middleware) -> Any:
    if not hasattr(manager, "__enter__"):
        raise ConfigError(
            f"middleware {show(middleware)} returned {type(manager).__name__}, which cannot be entered around this handler"
        )
    return manager
