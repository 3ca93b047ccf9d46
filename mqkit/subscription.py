"""Subscription: take messages yourself, one by one, instead of having them handled."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from mqkit._consume import ConsumePump
from mqkit._listen import Ear, listening_of
from mqkit._mailbox import Mailbox
from mqkit._numbers import whole
from mqkit._registry import known_schemes
from mqkit._settings import Settings, needs
from mqkit._timeout import check_timeout
from mqkit._topology import check_start, source_declaration
from mqkit.backends.base import Order, Start
from mqkit.destinations import Broadcast, Destination
from mqkit.errors import Closed, ConfigError, Unavailable, Undecodable
from mqkit.handlers import check_source, refuse
from mqkit.message import Delivery
from mqkit.patterns.retry import Retry

if TYPE_CHECKING:
    from mqkit.bus import Bus

T = TypeVar("T")

PREFETCH = 16  # deliveries held and not settled, if nothing is said
BUFFER = 100  # of a broadcast: messages that wait for a slow listener
OVERFLOW: Literal["drop_oldest", "drop_newest"] = "drop_oldest"
START = 10.0  # seconds to open the source
SLICE = 1.0  # seconds one step of an endless iteration blocks


class Subscription(Generic[T]):
    """
    Got by `bus.subscription(...)`; starts with its first use and ends with `close` or the `with` block.

    Iterated by one thread; its deliveries may be settled from any. What was not settled when it closes goes to the next
    consumer, uncounted. Undecodable messages go to the dead letters and are never seen here.
    """

    def __init__(
        self,
        bus: Bus,
        source: Destination[T],
        *,
        group: str | None,
        prefetch: int,
        start: Start,
        order: Order | None,
        retry: Retry | None,
        match: str | None,
        buffer: int,
        overflow: str,
    ) -> None:
        check_source("subscription", source, group=group, start=start, order=order, retry=retry)
        if isinstance(source, Broadcast):
            refuse("subscription", source, prefetch=prefetch != PREFETCH)
        else:
            live = {"match": match is not None, "buffer": buffer != BUFFER, "overflow": overflow != OVERFLOW}
            refuse("subscription", source, **live)
        if not whole(prefetch, 1, 10_000):
            raise ConfigError(f"subscription(prefetch={prefetch!r}): a whole number from 1 to 10000")
        self._bus = bus
        self._link = bus.link
        self._source = source
        self._lock = threading.Lock()
        self._pump: ConsumePump | None = None
        self._closed = False
        self._ear = Ear(match, buffer, overflow) if isinstance(source, Broadcast) else None
        self._listener: Any = None
        self._mailbox = self._ear.mailbox if self._ear is not None else Mailbox()
        self._settings = None if isinstance(source, Broadcast) else self._pulling(group, prefetch, start, order, retry)

    def receive(self, *, max: int = 1, timeout: float = 1.0) -> list[Delivery[T]]:
        """
        Wait up to `timeout` seconds for a first delivery, then take what else is there, at most `max` together.

        Raises:
            Closed: This subscription or its bus was closed.
            Unavailable: The source could not be opened.
        """
        self._bus.blocking("subscription(...).receive")
        if not isinstance(max, int) or max < 1:
            raise ConfigError(f"receive(max={max!r}): a whole number, 1 or more")
        check_timeout("receive", timeout)
        self.open()
        deadline = time.monotonic() + timeout
        taken: list[Delivery[T]] = []
        while len(taken) < max:
            item = self._mailbox.get(deadline - time.monotonic()) if not taken else self._mailbox.take()
            if item is None:
                break
            delivery = self.accepted(item)
            if delivery is not None:
                taken.append(delivery)
        if not taken:
            self.check()
        return taken

    def __iter__(self) -> Iterator[Delivery[T]]:
        """Deliveries as they come, until the subscription is closed."""
        while not self._closed:
            try:
                yield from self.receive(timeout=SLICE)
            except Closed:
                return

    def __enter__(self) -> Subscription[T]:
        self._bus.blocking("subscription(...)", "use `async with bus.aio.subscription(...)`")
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Subscription to {self._source!r}>"

    @property
    def dropped(self) -> int:
        """Of a broadcast: messages this listener was too slow for."""
        return self._mailbox.dropped

    def close(self) -> None:
        """Stop taking, give back what is unsettled. Safe to repeat, from any thread."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._link.state == "forked":
            return  # the thread and the deliveries are the parent's
        self._mailbox.close()
        if self._pump is not None:
            self._pump.stop(0.0)
            self._pump.join(10.0)
        if self._listener is not None and self._ear is not None:
            listening_of(self._link).remove(self._listener, self._ear)
        self._link.leave(self)

    # -- for the awaitable twin ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to take (or listen); returns when the source is open. Blocks."""
        with self._lock:
            self.check()
            if self._pump is not None or self._listener is not None:
                return
            self._link.note(self._source)
            self._link.join(self)
            try:
                if self._ear is not None and isinstance(self._source, Broadcast):
                    self._listener = listening_of(self._link).add(self._source, self._ear)
                else:
                    self._pump = self._start()
            except BaseException:
                self._link.leave(self)
                raise

    def check(self) -> None:
        """
        Raises:
            Closed: This subscription or its bus was closed, or belongs to the parent of this process.
            StoreDamaged, Denied, ...: Why the source cannot be taken from any more, if waiting would not help.
        """
        if self._closed:
            raise Closed(f"{self!r} is closed")
        self._link.check()
        if self._pump is not None and self._pump.failed is not None:
            raise self._pump.failed

    # -- for the link ----------------------------------------------------------------------------------------------

    starting = False

    @property
    def consumers(self) -> list[ConsumePump]:
        return [self._pump] if self._pump is not None else []

    def end(self, timeout: float) -> None:
        del timeout  # nothing is waited for but the thread
        self.close()

    # -- for the awaitable twin ------------------------------------------------------------------------------------

    @property
    def mailbox(self) -> Mailbox:
        return self._mailbox

    @property
    def closed(self) -> bool:
        return self._closed

    def accepted(self, item: Any) -> Delivery[T] | None:
        """A mailbox item as a delivery in the user's hands; None if it is not ours any more or cannot be decoded."""
        holder: Any = self._pump
        if holder is None:
            delivery: Delivery[T] = Delivery(item, _Live(self._source))
        else:
            delivery = item
            if not holder.begin(delivery):
                return None
        received = delivery._received
        try:
            delivery.payload = self._source.schema.decode(received.body, received.envelope)
        except Undecodable as exc:
            delivery._settled = True
            if holder is not None:
                holder.finish(delivery, exc)
            return None
        return delivery

    def _pulling(
        self, group: str | None, prefetch: int, start: Start, order: Order | None, retry: Retry | None
    ) -> Settings | None:
        declaration = source_declaration(self._source, group, "", order=order, start=start)
        name = f"{self._source.name}/{group}" if group else self._source.name
        return Settings(
            name=name,
            destination=self._source,
            group=group,
            declaration=declaration,
            retry=retry or Retry(),
            promise="at_least_once",
            concurrency=prefetch,
            timeout=None,
            window=prefetch,
            batch=None,
            where=None,
            manual=True,
        )

    def _start(self) -> ConsumePump:
        link, settings = self._link, self._settings
        assert settings is not None
        backend = link.backend
        address = settings.declaration.address
        declaration = source_declaration(
            self._source,
            address.group or None,
            backend.capabilities.name,
            order=settings.declaration.order,
            start=settings.declaration.start,
        )
        settings = msgspec.structs.replace(settings, declaration=declaration)
        needs(settings, backend.capabilities, known_schemes())
        check_start(self._source, declaration, backend.capabilities)
        if self._source.declare:
            link.topology.note_source(declaration)
        pump = ConsumePump(settings, backend, link.topology, link, None)
        pump.start(_Hands(self._mailbox))
        deadline = time.monotonic() + START
        while not pump.running.wait(0.02):
            if pump.failed is not None or time.monotonic() > deadline:
                pump.stop(0.0)
                raise pump.failed or Unavailable(f"{settings.name} did not open within {START:g} s: {pump.state}")
        return pump


class _Hands:
    """The crew of a pull loop: whoever calls `receive`."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def start(self, work: Any) -> None:
        self._mailbox.put(work)

    def turn_end(self) -> bool:
        return False

    def stuck(self) -> int:
        return 0

    def cancel(self) -> None:
        """Nothing to interrupt: the user's code is not ours."""

    def stop(self) -> None:
        self._mailbox.close()


class _Live:
    """Holder of a broadcast's deliveries: settling them means nothing, and does no harm."""

    group: str | None = None
    explicit = True
    by_member = False

    def __init__(self, destination: Destination[Any]) -> None:
        self.destination = destination

    def finish(self, delivery: Delivery[Any], outcome: BaseException | None) -> None:
        """At most once: there is nobody to tell."""

    def stage(self, delivery: Delivery[Any], to: Any, payload: Any, via: Any, options: Any) -> Any:
        raise ConfigError(
            f"{delivery!r} is live and never acknowledged, so nothing can be staged with it; use bus.publish"
        )
