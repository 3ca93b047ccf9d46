"""Bus: publish, pull, consume, on one messaging system. Its awaitable face is `bus.aio`."""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from mqkit import config
from mqkit._clock import Clock, SystemClock
from mqkit._consume import Settings
from mqkit._listen import Listening
from mqkit._outgoing import forwarded, outgoing
from mqkit._publish import OVERFLOWS, Overflow, PublishPump, wait_for_ticket
from mqkit._registry import backend_for, known_schemes
from mqkit._ticket import Ticket
from mqkit._topology import Mode, Topology, declaration_of
from mqkit._url import Url
from mqkit.aio import AsyncBus
from mqkit.backends.base import Address, Admin, Backend, Outgoing
from mqkit.destinations import Broadcast, Destination, Queue, Topic, check_name
from mqkit.errors import BlockingCall, CapabilityMissing, Closed, ConfigError, NotFound, PublishFailed
from mqkit.handlers import Handlers, Provider, Registration
from mqkit.health import Health
from mqkit.message import Message, PublishOptions
from mqkit.patterns.dead_letter import DeadLetters
from mqkit.patterns.retry import Retry
from mqkit.subscription import Subscription
from mqkit.worker import Worker, run, settings_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Unpack

T = TypeVar("T")
P = TypeVar("P")

AT_EXIT = 5.0  # seconds an open bus may take to close when the interpreter ends


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
        self.name = check_name(name, "bus")
        self._url = url
        self._declare: Mode = declare
        self._buffer = buffer
        self._overflow: Overflow = overflow
        self._clock: Clock = clock or SystemClock()
        self._settings: config.BusConfig | None = None
        self._backend: Backend | None = None
        self._aio: AsyncBus | None = None
        self._pid = os.getpid()
        self._reset()
        _buses.add(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._pump: PublishPump | None = None
        self._topology: Topology | None = None
        self._closed = False
        self._workers: list[Worker] = []
        self._subscriptions: weakref.WeakSet[Subscription[Any]] = weakref.WeakSet()
        self._listening: Listening | None = None

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
            BlockingCall: The calling thread runs an event loop; await `bus.aio.publish`.
        """
        if asyncio._get_running_loop() is not None:
            self.blocking("publish")
        message = self.prepare(to, payload, options)
        if (native := options.get("native")) is not None:
            return self._publish_within(message, native)
        pump = self._pump or self.publish_pump
        return wait_for_ticket(pump.send(message), timeout, pump.trouble)

    def publish_soon(self, to: Destination[P], payload: P, **options: Unpack[PublishOptions]) -> Future[str]:
        """
        Send a message without waiting; the future gives its id, or raises as `publish` does.

        Order is kept. What fails is raised again by the next `flush` or `close`, so the future may be dropped.
        """
        message = self.prepare(to, payload, options)
        if options.get("native") is not None:
            raise ConfigError("publish_soon takes no native=: a transaction of yours is used at once, by publish")
        pump = self._pump or self.publish_pump
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
        if options.get("id") is not None:
            raise ConfigError("publish_many gives each message its own id; use publish(id=...)")
        messages = [self.prepare(to, payload, options) for payload in payloads]
        tickets = self.publish_pump.send_many(messages)
        return self._outcomes(tickets, messages, time.monotonic() + timeout)

    def forward(self, to: Destination[Any], message: Message, *, timeout: float = 10.0) -> str:
        """Send a message on: body, headers, key and id untouched. Raises as `publish`."""
        self.blocking("forward")
        self._note(to)
        copy = forwarded(to, message, self._opened_backend().capabilities)
        return wait_for_ticket(self.publish_pump.send(copy), timeout, self.publish_pump.trouble)

    def flush(self, *, timeout: float = 30.0) -> None:
        """
        Wait for every `publish_soon` so far.

        Raises:
            PublishFailed: One or more failed since the last flush; a single one is raised as it is.
            TimedOut: Some are not answered yet; they are still being sent.
        """
        self.blocking("flush")
        if self._pump is not None:
            self._pump.flush(timeout)

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
        prefetch: int = 16,
        start: Literal["latest", "earliest"] = "latest",
        order: Literal["none", "key"] | None = None,
        retry: Retry | None = None,
        match: str | None = None,
        buffer: int = 100,
        overflow: Literal["drop_oldest", "drop_newest"] = "drop_oldest",
    ) -> Subscription[Any]:
        """
        Take messages yourself: `with bus.subscription(...) as messages: for delivery in messages: ...; delivery.ack()`.

        Args:
            group: Of a topic; required there.
            prefetch: Most deliveries held and not settled.
            retry: What judges `delivery.fail(error)`.
            match: Of a broadcast: only keys of this pattern, words between dots, `*` for one word, `#` for any number.
            buffer: Of a broadcast: how many wait for a slow listener before `overflow` applies.
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
        for destination in destinations:
            self._note(destination)
        self._topology_of().ensure(self._opened_backend(), [one.address for one in destinations])

    def dead_letters(self, of: Destination[T], *, group: str | None = None) -> DeadLetters[T]:
        """The dead letters of a queue, or of one group of a topic."""
        if isinstance(of, Broadcast):
            raise ConfigError(f"dead_letters({of!r}): a broadcast is at most once and has none")
        if (group is None) == isinstance(of, Topic):
            raise ConfigError(f"dead_letters({of!r}): group= names the group of a topic, and a queue has none")
        self._note(of, group)
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
        with self._lock:
            self._closed = False
        self._check()
        self.publish_pump.wait_connected(timeout)

    def close(self, *, timeout: float = 10.0) -> None:
        """
        Flush, then let go of every connection. Safe to repeat. Later use raises `Closed`; `open` reopens.

        Raises:
            TimedOut: Accepted publishes are undelivered after `timeout` seconds, and lost with this process.
            PublishFailed: What `publish_soon` sent since the last flush was refused.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            workers, pump, listening = list(self._workers), self._pump, self._listening
            self._pump = self._listening = None
        for worker in workers:
            worker.stop()
        for subscription in list(self._subscriptions):
            subscription.close()
        if listening is not None:
            listening.close()
        try:
            if pump is not None:
                pump.close(timeout)
        finally:
            if self._backend is not None:
                self._backend.close()
            self._topology = None

    def __enter__(self) -> Bus:
        self.open()
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
        self.blocking("worker")
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
        pump = self._pump
        if pump is None:
            ready = False
            reasons.append("closed" if self._closed else "not open")
        elif trouble := pump.trouble():
            ready = False
            reasons.append(f"publishing: {trouble}")
        if pump is not None and not pump.alive:
            live = False
            reasons.append("publishing: its thread has died")
        for worker in list(self._workers):
            if worker.starting:
                ready = False
                reasons.append("consuming: starting")
            for consumer in worker.consumers:
                if consumer.state != "running":
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
    def publish_pump(self) -> PublishPump:
        pump = self._pump
        if pump is None:
            with self._lock:
                backend, topology = self._opened_backend(), self._topology_of()
                pump = self._pump
                if pump is None:
                    pump = self._pump = PublishPump(
                        backend, topology, buffer=self._buffer, overflow=self._overflow, name=self.name
                    )
        return pump

    def prepare(
        self, to: Destination[Any], payload: Any, options: Mapping[str, Any], *, id: str = "", staged: bool = False
    ) -> Outgoing:
        """Encode and check one message of a destination this bus knows from now on."""
        if staged and options.get("native") is not None:
            raise ConfigError("delivery.publish takes no native=: a staged message is sent with the settlement")
        backend = self._backend if self._backend is not None and not self._closed else self._opened_backend()
        if self._topology is None or not self._topology.knows(to):
            self._note(to)
        return outgoing(to, payload, options, backend.capabilities, id=id)

    def blocking(self, verb: str) -> None:
        """Raises `BlockingCall` when the calling thread runs an event loop."""
        if asyncio._get_running_loop() is not None:
            raise BlockingCall(
                f"bus.{verb} would block the event loop that runs on this thread; await bus.aio.{verb} instead"
            )

    def admin_of(self, address: Address) -> Admin:
        """An admin, after what `address` needs was declared."""
        backend = self._opened_backend()
        self._topology_of().ensure(backend, [address])
        return backend.admin()

    def _note(self, to: Destination[Any], group: str | None = None) -> None:
        if not isinstance(to, Destination):
            raise ConfigError(f"{to!r} is not a destination; declare Queue, Topic or Broadcast once and pass that")
        topology, backend = self._topology_of(), self._opened_backend()
        topology.note(to, backend.capabilities.name)
        if to.priorities > backend.capabilities.priorities:
            raise CapabilityMissing(f"{to!r} declares priorities, and {backend.capabilities.name} has none")
        if group is not None and to.declare:
            topology.note_source(declaration_of(to, check_name(group, "group"), backend.capabilities.name), weak=True)

    def _opened_backend(self) -> Backend:
        if self._backend is not None and not self._closed:
            return self._backend
        with self._lock:
            if self._closed:
                raise Closed(f"{self!r} is closed; open() it again before using it")
            if self._backend is None:
                self._settings = config.load(self.name, self._url)
                self._backend = backend_for(Url.parse(self._settings.url), self._clock)
            return self._backend

    def _topology_of(self) -> Topology:
        topology = self._topology
        if topology is None:
            with self._lock:
                if self._topology is None:
                    self._topology = Topology(self._declare)
                topology = self._topology
        return topology

    def _overrides(self, registration: Registration) -> config.Overrides:
        self._opened_backend()
        assert self._settings is not None
        return self._settings.on.get(registration.name, config.Overrides())

    def _check(self) -> list[tuple[Registration, dict[Any, Provider], Any, Settings]]:
        """Every registration with its settings; raises for what this backend cannot do and for unknown overrides."""
        backend = self._opened_backend()
        entries = self._collected()
        assert self._settings is not None
        names = {registration.name for registration, _, _ in entries}
        for source in self._settings.on:
            if entries and source not in names:
                raise ConfigError(
                    f'settings of bus {self.name!r} name the handler "{source}", which is not registered (registered: '
                    f"{', '.join(sorted(names))})"
                )
        return [
            (registration, providers, middlewares, settings_of(self, registration, backend, known_schemes()))
            for registration, providers, middlewares in entries
        ]

    def _listen(self) -> Listening:
        with self._lock:
            if self._listening is None:
                self._listening = Listening(self)
            return self._listening

    def _open_for_registration(self) -> None:
        if self._workers:
            raise ConfigError(f"{self!r} consumes already; register handlers before its worker starts")

    def _publish_within(self, message: Outgoing, native: Any) -> str:
        try:
            self._opened_backend().publish_within(native, [message])
        except (
            NotFound
        ) as exc:  # and it cannot be declared now, while that transaction may keep all others from writing
            raise ConfigError(f"{exc}, before your transaction begins: bus.declare(...)") from exc
        return message.id

    def _outcomes(
        self, tickets: Sequence[Ticket], messages: Sequence[Outgoing], deadline: float
    ) -> list[str | PublishFailed]:
        results: list[str | PublishFailed] = []
        for ticket, message in zip(tickets, messages, strict=True):
            try:
                results.append(
                    wait_for_ticket(ticket, max(0.0, deadline - time.monotonic()), self.publish_pump.trouble)
                )
            except PublishFailed as exc:
                results.append(exc)
            except Exception as exc:  # noqa: BLE001  one outcome per message, whatever it is
                results.append(_as_failed(message, exc))
        return results

    def _after_fork(self) -> None:
        """In a forked child: unopened, with new locks; what was inherited is forgotten, never closed."""
        backend, pump = self._backend, self._pump
        self._pid = os.getpid()
        self._backend = None
        self._reset()
        if backend is not None:
            backend.after_fork()
        if pump is not None:
            pump.after_fork()


def _as_failed(message: Outgoing, error: Exception) -> PublishFailed:
    failed = PublishFailed(f"message {message.id} was not sent: {error}")
    failed.retryable = bool(getattr(error, "retryable", False))
    failed.__cause__ = error
    return failed


def _shown(url: str) -> str:
    try:
        return str(Url.parse(url))
    except ConfigError:
        return "(a URL that cannot be parsed)"


_buses: weakref.WeakSet[Bus] = weakref.WeakSet()


def _close_all() -> None:
    for bus in list(_buses):
        if bus._pid == os.getpid() and bus._pump is not None:
            try:
                bus.close(timeout=AT_EXIT)
            except Exception as exc:  # noqa: BLE001  at interpreter exit nobody can catch it any more
                sys.stderr.write(f"mqkit: {bus!r} at exit: {exc}\n")


def _all_after_fork() -> None:
    for bus in list(_buses):
        bus._after_fork()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_all_after_fork)
