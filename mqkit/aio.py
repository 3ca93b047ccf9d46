"""The awaitable face of a bus. Got by `bus.aio`; registrations, destinations and deliveries are the same in both."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

from mqkit._publish import BLOCK
from mqkit._ticket import Ticket, expire
from mqkit._timeout import check_timeout
from mqkit.backends.base import Outgoing
from mqkit.destinations import Broadcast, Destination, Queue, Topic
from mqkit.errors import BlockingCall, BufferFull, Closed, ConfigError, PublishFailed, PublishUnknown
from mqkit.health import Health
from mqkit.message import DeadLetter, Delivery, Message, PublishOptions
from mqkit.patterns.dead_letter import DeadLetters, Filter
from mqkit.patterns.retry import Retry
from mqkit.subscription import Subscription
from mqkit.worker import Worker

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mqkit.bus import Bus

T = TypeVar("T")
P = TypeVar("P")
R = TypeVar("R")
A = ParamSpec("A")


async def _threaded(function: Callable[A, R], /, *args: A.args, **kwargs: A.kwargs) -> R:
    """A blocking verb on the loop's pool. Only for what is rare: opening, closing, looking at dead letters."""
    return await asyncio.get_running_loop().run_in_executor(None, functools.partial(function, *args, **kwargs))


async def _begun(begin: Callable[[], object], undo: Callable[[], object]) -> None:
    """As `_threaded(begin)`; a caller who is cancelled meanwhile has begun nothing."""
    loop = asyncio.get_running_loop()
    beginning = loop.run_in_executor(None, begin)
    try:
        await asyncio.shield(beginning)
    except asyncio.CancelledError:
        # A thread cannot be stopped: what it has begun by then is ended when it is done.
        beginning.add_done_callback(lambda done: done.exception() or loop.run_in_executor(None, undo))
        raise


class AsyncBus:
    """The same bus, its blocking verbs awaitable. May be used from several event loops."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def __repr__(self) -> str:
        return f"{self._bus!r}.aio"

    async def publish(
        self, to: Destination[P], payload: P, *, timeout: float = 10.0, **options: Unpack[PublishOptions]
    ) -> str:
        """As `Bus.publish`. Cancelling it leaves the outcome unknown."""
        check_timeout("publish", timeout)
        _refuse_native("publish", options)
        message = self._bus.prepare(to, payload, options)
        return await self._sent(message, timeout)

    async def publish_soon(
        self, to: Destination[P], payload: P, **options: Unpack[PublishOptions]
    ) -> asyncio.Future[str]:
        """As `Bus.publish_soon`; waits for room without blocking the loop."""
        message = self._bus.prepare_soon(to, payload, options)
        pump = self._bus.publish_pump
        deadline = time.monotonic() + BLOCK
        while True:
            try:
                return asyncio.wrap_future(pump.send_soon(message, on_loop=True))
            except BlockingCall:  # no room, and asked beforehand there might have been
                if time.monotonic() > deadline:
                    raise BufferFull(
                        f"no room in the publish buffer for {BLOCK:g} s: {pump.trouble() or 'the broker is slow'}"
                    ) from None
            await asyncio.sleep(0.005)

    async def publish_many(
        self, to: Destination[P], payloads: Sequence[P], *, timeout: float = 30.0, **options: Unpack[PublishOptions]
    ) -> list[str | PublishFailed]:
        """As `Bus.publish_many`."""
        _refuse_native("publish_many", options)
        return await _threaded(lambda: self._bus.publish_many(to, payloads, timeout=timeout, **options))

    async def forward(self, to: Destination[Any], message: Message, *, timeout: float = 10.0) -> str:
        """As `Bus.forward`."""
        return await _threaded(self._bus.forward, to, message, timeout=timeout)

    async def flush(self, *, timeout: float = 30.0) -> None:
        """As `Bus.flush`."""
        await _threaded(self._bus.flush, timeout=timeout)

    @overload
    def subscription(
        self,
        source: Topic[T],
        *,
        group: str,
        prefetch: int = ...,
        start: Literal["latest", "earliest"] = ...,
        order: Literal["none", "key"] | None = ...,
        retry: Retry | None = ...,
    ) -> AsyncSubscription[T]: ...
    @overload
    def subscription(
        self,
        source: Queue[T],
        *,
        prefetch: int = ...,
        order: Literal["none", "key"] | None = ...,
        retry: Retry | None = ...,
    ) -> AsyncSubscription[T]: ...
    @overload
    def subscription(
        self,
        source: Broadcast[T],
        *,
        match: str | None = ...,
        buffer: int = ...,
        overflow: Literal["drop_oldest", "drop_newest"] = ...,
    ) -> AsyncSubscription[T]: ...
    def subscription(self, source: Any, **options: Any) -> AsyncSubscription[Any]:
        """As `Bus.subscription`, for `async with` and `async for`."""
        return AsyncSubscription(self._bus.subscription(source, **options))

    async def declare(self, *destinations: Destination[Any]) -> None:
        """As `Bus.declare`."""
        await _threaded(self._bus.declare, *destinations)

    @overload
    def dead_letters(self, of: Queue[T]) -> AsyncDeadLetters[T]: ...
    @overload
    def dead_letters(self, of: Topic[T], *, group: str) -> AsyncDeadLetters[T]: ...
    def dead_letters(self, of: Any, **options: Any) -> AsyncDeadLetters[Any]:
        """As `Bus.dead_letters`."""
        return AsyncDeadLetters(self._bus.dead_letters(of, **options))

    async def open(self, *, timeout: float = 10.0) -> None:
        """As `Bus.open`."""
        await _threaded(self._bus.open, timeout=timeout)

    async def close(self, *, timeout: float = 10.0) -> None:
        """As `Bus.close`."""
        self._bus.refuse_in_handler("aio.close")
        await _threaded(self._bus.close, timeout=timeout)

    async def __aenter__(self) -> AsyncBus:
        # With the context: in a handler of this bus a failure must not close it, which would wait for that handler.
        await _begun(functools.partial(contextvars.copy_context().run, self._bus.__enter__), self._bus.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def worker(
        self, *, only: Sequence[str | Destination[Any]] | None = None, grace: float = 30.0
    ) -> AsyncIterator[Worker]:
        """As `Bus.worker`; `async def` handlers run on the calling loop."""
        worker = Worker(self._bus, only=only, grace=grace, loop=asyncio.get_running_loop())
        await _begun(worker.start, worker.stop)
        try:
            yield worker
        finally:
            await asyncio.shield(worker.astop())

    def health(self) -> Health:
        """As `Bus.health`; never blocks."""
        return self._bus.health()

    async def _sent(self, message: Outgoing, timeout: float) -> str:
        pump = self._bus.publish_pump
        ticket = pump.send(message)
        try:
            async with asyncio.timeout(timeout):
                return await _resolved(ticket)
        except TimeoutError:
            return expire(ticket, message, timeout, pump.trouble())
        except asyncio.CancelledError:
            ticket.cancel()  # not sent if it was still ours; otherwise unknown
            raise


def _refuse_native(verb: str, options: Mapping[str, Any]) -> None:
    native = options.get("native")
    if native is not None and getattr(native, "kind", "") != "message":
        raise ConfigError(f"native= uses a transaction of yours on its own thread; call bus.{verb} there")


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():  # whoever waited was not cancelled
        done.set_result(None)


async def _resolved(ticket: Ticket) -> str:
    """Wait for a ticket without touching it: who gives up waiting decides himself whether to withdraw it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(_: Any) -> None:
        try:
            loop.call_soon_threadsafe(_settle, done)
        except RuntimeError:  # that loop is closed, nobody waits any more
            return

    ticket.add_done_callback(tell)
    await done
    if ticket.cancelled():
        raise PublishUnknown("the publish was withdrawn by another caller of its future")
    return ticket.result(0)


class AsyncSubscription(Generic[T]):
    """`Subscription` for tasks: `async with`, `async for`, `await receive()`."""

    def __init__(self, inner: Subscription[T]) -> None:
        self._inner = inner

    async def receive(self, *, max: int = 1, timeout: float = 1.0) -> list[Delivery[T]]:
        """As `Subscription.receive`."""
        check_timeout("receive", timeout)
        return await self._receive(max, timeout)

    async def _receive(self, max: int, timeout: float | None) -> list[Delivery[T]]:
        await _begun(self._inner.open, self._inner.close)
        taken: list[Delivery[T]] = []
        mailbox = self._inner.mailbox
        while len(taken) < max:
            item = await mailbox.aget(timeout) if not taken else mailbox.take()
            if item is None:
                break
            delivery = self._inner.accepted(item)
            if delivery is not None:
                taken.append(delivery)
        if not taken:
            self._inner.check()
        return taken

    async def __aiter__(self) -> AsyncIterator[Delivery[T]]:
        while not self._inner.closed:
            try:
                for delivery in await self._receive(1, None):
                    yield delivery
            except Closed:
                return

    async def __aenter__(self) -> AsyncSubscription[T]:
        await _begun(self._inner.open, self._inner.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def dropped(self) -> int:
        """As `Subscription.dropped`."""
        return self._inner.dropped

    async def close(self) -> None:
        """As `Subscription.close`."""
        await _threaded(self._inner.close)


class AsyncDeadLetters(Generic[T]):
    """`DeadLetters` for tasks."""

    def __init__(self, inner: DeadLetters[T]) -> None:
        self._inner = inner

    async def list(self, *, limit: int = 100, where: Filter | None = None) -> list[DeadLetter[T]]:
        """As `DeadLetters.list`."""
        return await _threaded(self._inner.list, limit=limit, where=where)

    async def get(self, id: str) -> DeadLetter[T] | None:
        """As `DeadLetters.get`."""
        return await _threaded(self._inner.get, id)

    async def replay(
        self,
        ids: Iterable[str] | None = None,
        *,
        where: Filter | None = None,
        to: Any = None,
        rate: float | None = None,
    ) -> int:
        """As `DeadLetters.replay`."""
        return await _threaded(self._inner.replay, ids, where=where, to=to, rate=rate)

    async def purge(self, ids: Iterable[str] | None = None, *, where: Filter | None = None) -> int:
        """As `DeadLetters.purge`."""
        return await _threaded(self._inner.purge, ids, where=where)
