"""Bus: publish, pull, consume, on one messaging system. Its awaitable face is `bus.aio`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mqkit import config
from mqkit._clock import Clock, SystemClock, is_clock
from mqkit._link import Link
from mqkit._outgoing import forwarded
from mqkit._publish import OVERFLOWS, Overflow, PublishPump
from mqkit._registry import known_schemes
from mqkit._settings import Settings
from mqkit._ticket import Ticket, wait_for_ticket
from mqkit._timeout import check_timeout
from mqkit._topology import Mode
from mqkit._url import Url
from mqkit.aio import AsyncBus
from mqkit.backends.base import Address, Admin, Outgoing
from mqkit.destinations import Broadcast, Destination, Queue, Topic, check_name
from mqkit.errors import BlockingCall, ConfigError, MqkitError, PublishFailed, PublishUnknown
from mqkit.handlers import Handlers, Provider, Registration
from mqkit.health import Health
from mqkit.message import Message, PublishOptions, current
from mqkit.patterns.dead_letter import DeadLetters
from mqkit.patterns.retry import Retry
from mqkit.subscription import BUFFER, OVERFLOW, PREFETCH, Subscription
from mqkit.worker import Worker, run, settings_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Unpack

T = TypeVar("T")
P = TypeVar("P")


class Bus(Handlers):
    """
    One messaging system, by URL.

    Making it connects to nothing, starts no thread and reads no environment. Publishing, pulling and `with bus:` open
    it; only `worker`, `run` and the command line consume. Every method may be called from any thread; after a fork the
    child's bus is unopened and opens its own connections.

    Args:
        url: Such as `sqlite:///app.db`; left out: `MQKIT_URL`, `mqkit.toml`, `pyproject.toml` (see `mqkit.config`).
        name: Chooses the settings, and tells buses apart in logs.
        declare: "create" what is missing on the broker, "check" that it is there, or "never" ask.
        buffer: Most messages `publish_soon` holds that the broker has not answered.
        overflow: What `publish_soon` does when they are that many: "block" (at most 30 s), "reject" the new one with
            `BufferFull`, "drop_oldest", "drop_newest", or "spill" to a temporary file.
        clock: For tests on memory:// only, see `mqkit.testing.VirtualClock`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str = "default",
        declare: Mode = "create",
        buffer: int = 10_000,
        overflow: Overflow = "block",
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        if declare not in ("create", "check", "never"):
            raise ConfigError(f'Bus(declare={declare!r}) must be "create", "check" or "never"')
        if overflow not in OVERFLOWS:
            raise ConfigError(f"Bus(overflow={overflow!r}) must be one of {', '.join(OVERFLOWS)}")
        if not isinstance(buffer, int) or buffer < 1:
            raise ConfigError(f"Bus(buffer={buffer!r}) must be a whole number, 1 or more")
        if clock is not None and not is_clock(clock):
            raise ConfigError(f"Bus(clock={clock!r}) is no clock; pass an instance of mqkit.testing.VirtualClock")
        self.name = name = check_name(name, "bus")
        self._url = url
        self._options: dict[str, Any] = {
            "mode": declare, "buffer": buffer, "overflow": overflow, "clock": clock or SystemClock(),
        }  # fmt: skip
        self._aio: AsyncBus | None = None
        self._link = Link(name, url, **self._options)
        _buses.add(self)

    def __repr__(self) -> str:
        shown = "" if self._url is None else f" {_shown(self._url)}"
        return f"<Bus {self.name!r}{shown}>"

    def __reduce__(self) -> Any:
        raise TypeError("a Bus cannot be pickled; pass its URL and make another one there")

    # -- publishing ------------------------------------------------------------------------------------------------

    def publish(
        self, to: Destination[P], payload: P, *, timeout: float = 10.0, **options: Unpack[PublishOptions]
    ) -> str:
        """
        Send a message and return its id once the broker has taken responsibility for it.

        Args:
            timeout: Seconds to wait for that.

        Raises:
            Unencodable, MessageTooLarge, ConfigError: Nothing was sent.
            TimedOut: Withdrawn in time, not sent.
            PublishUnknown: Sent or not, nobody knows; publish again with the same `id`.
            PublishFailed, Denied, NotFound, TopologyMismatch: The broker refused; not sent.
            BlockingCall: The calling thread runs an event loop, await `bus.aio.publish`; or a done-callback of `publish_soon`.
        """
        pump = self._link.pump
        if asyncio._get_running_loop() is not None or (pump is not None and pump.ident == threading.get_ident()):
            self.blocking("publish")
        check_timeout("publish", timeout)
        message = self._link.prepare(to, payload, options)
        if (native := options.get("native")) is not None and message.native is None:
            return self._link.publish_within([message], native)[0]
        pump = pump or self._link.publish_pump
        return wait_for_ticket(pump.send(message), timeout, pump.trouble)

    def publish_soon(self, to: Destination[P], payload: P, **options: Unpack[PublishOptions]) -> Future[str]:
        """
        Send a message without waiting; the future gives its id, or raises as `publish` does.

        Order is kept. What fails is raised again by the next `flush` or `close`, so the future may be dropped. Its
        done-callbacks run on the thread that publishes and must not block.
        """
        message = self.prepare_soon(to, payload, options)
        pump = self._link.pump or self._link.publish_pump
        return pump.send_soon(message, on_loop=asyncio._get_running_loop() is not None)

    def publish_many(
        self, to: Destination[P], payloads: Sequence[P], *, timeout: float = 30.0, **options: Unpack[PublishOptions]
    ) -> list[str | PublishFailed]:
        """
        Send many messages together; for each its id, or why it was not confirmed.

        Raises:
            Unencodable, ConfigError: One of them can never be sent; none was.
        """
        self.blocking("publish_many")
        check_timeout("publish_many", timeout)
        if options.get("id") is not None:
            raise ConfigError("publish_many gives each message its own id; use publish(id=...)")
        messages = [self._link.prepare(to, payload, options) for payload in payloads]
        if (native := options.get("native")) is not None and not any(message.native for message in messages):
            return list(self._link.publish_within(messages, native))
        deadline = time.monotonic() + timeout
        pump = self._link.publish_pump
        tickets = pump.send_many(messages)
        return [_outcome(ticket, message, deadline, pump) for ticket, message in zip(tickets, messages, strict=True)]

    def forward(self, to: Destination[Any], message: Message, *, timeout: float = 10.0) -> str:
        """Send a message on: body, headers, key and id untouched. Raises as `publish`."""
        self.blocking("forward")
        check_timeout("forward", timeout)
        self._link.note(to)
        copy = forwarded(to, message, self._link.backend.capabilities)
        pump = self._link.publish_pump
        return wait_for_ticket(pump.send(copy), timeout, pump.trouble)

    def flush(self, *, timeout: float = 30.0) -> None:
        """
        Wait for every `publish_soon` so far.

        Raises:
            PublishFailed: One or more failed since the last flush; a single one is raised as it is.
            TimedOut: Some are not answered yet; they are still being sent.
        """
        self.blocking("flush")
        check_timeout("flush", timeout)
        self._link.check()
        if self._link.pump is not None:
            self._link.pump.flush(timeout)

    # -- pulling ---------------------------------------------------------------------------------------------------

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
    ) -> Subscription[T]: ...
    @overload
    def subscription(
        self,
        source: Queue[T],
        *,
        prefetch: int = ...,
        order: Literal["none", "key"] | None = ...,
        retry: Retry | None = ...,
    ) -> Subscription[T]: ...
    @overload
    def subscription(
        self,
        source: Broadcast[T],
        *,
        match: str | None = ...,
        buffer: int = ...,
        overflow: Literal["drop_oldest", "drop_newest"] = ...,
    ) -> Subscription[T]: ...
    def subscription(
        self,
        source: Any,
        *,
        group: str | None = None,
        prefetch: int = PREFETCH,
        start: Literal["latest", "earliest"] = "latest",
        order: Literal["none", "key"] | None = None,
        retry: Retry | None = None,
        match: str | None = None,
        buffer: int = BUFFER,
        overflow: Literal["drop_oldest", "drop_newest"] = OVERFLOW,
    ) -> Subscription[Any]:
        """
        Take messages yourself: `with bus.subscription(...) as messages: for delivery in messages: ...; delivery.ack()`.

        Args:
            group: Of a topic; required there.
            prefetch: Most deliveries held and not settled.
            start, order: As for `on`.
            retry: What judges `delivery.fail(error)`.
            match: Of a broadcast: only keys of this pattern, words between dots, `*` for one word, `#` for any number.
            buffer: Of a broadcast: how many wait for a slow listener before `overflow` applies.

        Raises:
            ConfigError: Now, for what is wrong in itself or says nothing about this kind of source; at the first use, for
                what the backend cannot do.
        """
        return Subscription(
            self, source, group=group, prefetch=prefetch, start=start, order=order, retry=retry,
            match=match, buffer=buffer, overflow=overflow,
        )  # fmt: skip

    # -- topology and dead letters ---------------------------------------------------------------------------------

    def declare(self, *destinations: Destination[Any]) -> None:
        """
        Make sure these exist now (queues, topics with their `groups`, broadcasts), rather than at their first use.

        Raises:
            TopologyMismatch: One exists with other options. NotFound: with declare="check", one is missing.
        """
        self.blocking("declare")
        link = self._link
        for destination in destinations:
            link.note(destination)
        link.topology.ensure(link.backend, [one.address for one in destinations])

    @overload
    def dead_letters(self, of: Queue[T]) -> DeadLetters[T]: ...
    @overload
    def dead_letters(self, of: Topic[T], *, group: str) -> DeadLetters[T]: ...
    def dead_letters(self, of: Any, *, group: str | None = None) -> DeadLetters[Any]:
        """The dead letters of a queue, or of one group of a topic."""
        if isinstance(of, Broadcast):
            raise ConfigError(f"dead_letters({of!r}): a broadcast is at most once and has none")
        if (group is None) == isinstance(of, Topic):
            raise ConfigError(f"dead_letters({of!r}): group= names the group of a topic, and a queue has none")
        self._link.note(of, group)
        return DeadLetters(self, of.address._replace(group=group or ""), of.partitions)

    # -- lifecycle -------------------------------------------------------------------------------------------------

    def open(self, *, timeout: float = 10.0) -> None:
        """
        Connect now, and check that the backend can do what is registered. Reopens a closed bus.

        Raises:
            ConfigError, CapabilityMissing, ExtraMissing, Denied: Waiting would not help.
            Unavailable: No connection within `timeout` seconds.
        """
        self.blocking("open")
        check_timeout("open", timeout)
        self._link.reopen()
        self._check()
        self._link.publish_pump.wait_connected(timeout)

    def close(self, *, timeout: float = 10.0) -> None:
        """
        End workers and subscriptions, flush, let go of every connection. Safe to repeat; `open` reopens.

        Handlers that run may finish, and publish, within the timeout (or their worker's grace, if that is shorter); then
        what is queued is sent. Later use raises `Closed`.

        Raises:
            TimedOut: Accepted publishes are undelivered after `timeout` seconds: their futures say which were not sent, and
                for which that is unknown. None is sent later.
            PublishFailed: What `publish_soon` sent since the last flush was refused.
            BlockingCall: The calling thread runs an event loop, a handler of this bus, or a done-callback of `publish_soon`: it
                would wait for itself.
            Whatever a `per="worker"` provider raised at its end, when all the rest was closed.
        """
        self.blocking("close")
        check_timeout("close", timeout)
        self.refuse_in_handler("close")
        self._link.close(timeout)

    def refuse_in_handler(self, verb: str) -> None:
        delivery = current.get()
        if delivery is not None and any(
            user.handles(delivery) for user in self._link.users if isinstance(user, Worker)
        ):
            raise BlockingCall(
                f"bus.{verb} in a handler would wait for that handler; let it return, and end the bus where its worker was started"
            )

    def __enter__(self) -> Bus:
        self.blocking("open")
        try:
            self.open()
        except BaseException as exc:
            # The end of the block will not come, and what `open` began would go on trying to connect.
            try:
                self.close()
            except MqkitError as ending:
                exc.add_note(f"and then: {type(ending).__name__}: {ending}")
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def worker(self, *, only: Sequence[str | Destination[Any]] | None = None, grace: float = 30.0) -> Iterator[Worker]:
        """
        Consume while inside the block; leaving it stops gracefully.

        Args:
            only: Sources to consume, as destinations or names such as "emails", "orders/billing"; all if left out.
            grace: Seconds that running handlers have to finish; what has not begun is given back at once.
        """
        self.blocking("worker", "use `async with bus.aio.worker()`")
        worker = Worker(self, only=only, grace=grace, loop=None)
        worker.start()
        try:
            yield worker
        finally:
            worker.stop()

    def run(self, *, only: Sequence[str | Destination[Any]] | None = None, grace: float = 30.0) -> None:
        """Consume until SIGTERM or SIGINT, in the main thread; a second signal ends at once. Closes the bus."""
        run(self, only=only, grace=grace)

    def health(self) -> Health:
        """A snapshot without I/O, for probes."""
        reasons: list[str] = []
        live = ready = True
        pump, users = self._link.pump, list(self._link.users)
        if pump is None and not users:
            ready = False
            reasons.append("closed" if self._link.state == "closed" else "not open")
        elif pump is not None and (trouble := pump.trouble()):
            ready = False
            reasons.append(f"publishing: {trouble}")
        if pump is not None and not pump.alive:
            live = False
            reasons.append("publishing: its thread has died")
        for user in users:
            if user.starting:
                ready = False
                reasons.append("consuming: starting")
            for consumer in user.consumers:
                if not consumer.alive:
                    live = ready = False
                    reasons.append(f"{consumer.settings.name}: its thread has died")
                elif consumer.state != "running":
                    ready = False
                    reasons.append(f"{consumer.settings.name}: {consumer.state}")
                if stuck := consumer.stuck():
                    reasons.append(f"{consumer.settings.name}: {stuck} handlers run past their timeout")
        return Health(live, ready, reasons)

    @property
    def aio(self) -> AsyncBus:
        """The same bus, its blocking verbs awaitable; bound to no event loop."""
        if self._aio is None:
            self._aio = AsyncBus(self)
        return self._aio

    # -- for the parts of mqkit ------------------------------------------------------------------------------------

    @property
    def link(self) -> Link:
        return self._link

    @property
    def publish_pump(self) -> PublishPump:
        return self._link.publish_pump

    def prepare(
        self, to: Destination[Any], payload: Any, options: Mapping[str, Any], *, id: str = "", staged: bool = False
    ) -> Outgoing:
        return self._link.prepare(to, payload, options, id=id, staged=staged)

    def prepare_soon(self, to: Destination[Any], payload: Any, options: Mapping[str, Any]) -> Outgoing:
        """As `prepare`, for `publish_soon` of either face."""
        message = self._link.prepare(to, payload, options)
        if options.get("native") is not None and message.native is None:
            raise ConfigError("publish_soon takes no native=: a transaction of yours is used at once, by publish")
        return message

    def blocking(self, verb: str, instead: str = "") -> None:
        """
        Raises `BlockingCall` on a thread that must not wait: it runs an event loop, or a done-callback of ours.

        Args:
            instead: What to do on a loop, where it is not awaiting the verb of the same name.
        """
        if asyncio._get_running_loop() is not None:
            instead = instead or f"await bus.aio.{verb} instead"
            raise BlockingCall(f"bus.{verb} would block the event loop that runs on this thread; {instead}")
        self._refuse_done_callback(verb)

    def _refuse_done_callback(self, verb: str) -> None:
        pump = self._link.pump
        if pump is not None and pump.runs_here:
            raise BlockingCall(
                f"bus.{verb} in a done-callback of publish_soon would wait for the thread that runs it; call it from another"
            )

    def admin_of(self, address: Address) -> Admin:
        """An admin, after what `address` needs was declared."""
        return self._link.admin_of(address)

    def _overrides(self, registration: Registration) -> config.Overrides:
        return self._link.settings.on.get(registration.name, config.Overrides())

    def _check(self) -> list[tuple[Registration, dict[Any, Provider], Any, Settings]]:
        """Every registration with its settings; raises for what this backend cannot do and for unknown overrides."""
        backend, settings = self._link.backend, self._link.settings
        entries = self._collected()
        names = {registration.name for registration, _, _ in entries}
        for source in settings.on:
            if entries and source not in names:
                raise ConfigError(
                    f'settings of bus {self.name!r} name the handler "{source}", which is not registered (registered: '
                    f"{', '.join(sorted(names))})"
                )
        return [
            (registration, providers, middlewares, settings_of(self, registration, backend, known_schemes()))
            for registration, providers, middlewares in entries
        ]

    def _open_for_registration(self) -> None:
        if any(isinstance(user, Worker) for user in self._link.users):
            raise ConfigError(f"{self!r} consumes already; register handlers before its worker starts")
        super()._open_for_registration()

    def _after_fork(self) -> None:
        """In a forked child: unopened; what was inherited is forgotten, never closed."""
        self._link.orphan()
        self._link = Link(self.name, self._url, **self._options)


def _outcome(ticket: Ticket, message: Outgoing, deadline: float, pump: PublishPump) -> str | PublishFailed:
    try:
        return wait_for_ticket(ticket, max(0.0, deadline - time.monotonic()), pump.trouble)
    except PublishFailed as exc:
        return exc
    except MqkitError as exc:  # TimedOut, Denied, ...: each says that nothing was sent
        failed = PublishFailed(f"message {message.id} was not sent: {exc}")
        failed.retryable = exc.retryable
        failed.__cause__ = exc
        return failed
    except Exception as exc:  # noqa: BLE001  one outcome per message, whatever it is
        unknown = PublishUnknown(
            f"message {message.id}: sent or not, nobody knows: {exc!r}; publish again with the same id"
        )
        unknown.__cause__ = exc
        return unknown


def _shown(url: str) -> str:
    try:
        return str(Url.parse(url))
    except ConfigError:
        return "(a URL that cannot be parsed)"


_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


def _all_after_fork() -> None:
    for bus in list(_buses):
        bus._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_all_after_fork)
