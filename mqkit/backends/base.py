"""
The seam between the core and a messaging system.

A backend only translates. It never retries, sleeps, logs, starts a thread of its own (but for the one writer of a file
with one write lock) or keeps policy: retry, dead letters, attempts, ordering lanes, windows and deadlines are the core's.

Who calls what: a publish pump owns one `Publisher`, a consume pump owns one `Receiver`; each opens, uses and closes it on
its own thread, and only `wake` is called from others. An `Admin` is short-lived and used by one thread at a time.

All durations are seconds. "Now" of a backend (`Receiver.now`) never steps; leases, delays and expiry follow it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import msgspec

from mqkit._clock import Clock
from mqkit._url import Url
from mqkit.envelope import Envelope
from mqkit.errors import MqkitError

Kind = Literal["queue", "topic", "broadcast"]
Order = Literal["none", "key"]
Start = Literal["latest", "earliest"]


class Address(NamedTuple):
    """
    Where a message goes or comes from.

    A queue, a topic (every group gets it), one group of a topic (only that group gets it), a broadcast, or the dead
    letters of a queue or group. Sources are queues, groups, broadcasts and dead letters.
    """

    kind: Kind
    name: str
    group: str = ""
    dead: bool = False

    @property
    def dead_letters(self) -> Address:
        return self._replace(dead=True)

    def __str__(self) -> str:
        """As the command line and logs write it: `emails`, `topic:orders`, `orders/billing`, `emails (dead letters)`."""
        name = f"{self.name}/{self.group}" if self.group else self.name
        if self.kind != "queue" and not self.group:
            name = f"{self.kind}:{name}"
        return f"{name} (dead letters)" if self.dead else name


class Declaration(msgspec.Struct, frozen=True):
    """
    What must exist before `address` is used, and with which options. Declaring again is harmless.

    Declaring a queue or a group brings its dead letters along; declaring a group brings its topic along. `keyed` says
    that the destination declares `key=`, so that groups may ask for order. `order` is what a consumer asked for; None is
    said by those who do not consume: it agrees with either, and leaves a new source undecided until a consumer declares it.
    """

    address: Address
    keyed: bool = False
    partitions: int = 1
    priorities: int = 0
    order: Order | None = "none"
    start: Start = "latest"  # where a group that is new begins
    native: Any = None  # the options object of this backend, or None


class Outgoing(msgspec.Struct, gc=False):
    """One encoded message on its way out. `token` is the core's and comes back with the outcome."""

    address: Address
    id: str
    body: bytes
    key: str | None
    headers: dict[str, str]  # the user's; never changed after this object is made
    envelope: Envelope
    delay: float = 0.0
    ttl: float | None = None  # counted from the moment it is due
    priority: int = 0
    token: Any = None
    partitions: int = 1  # of the destination, for a publisher that has to choose one and may never have declared it
    native: Any = None  # an options object of this backend whose kind is "message", or None


class Received(msgspec.Struct, gc=False):
    """
    One message in the hands of this process, until it is settled or revoked.

    `handle` differs between any two hand-outs, also of one message. `attempt` counts failed tries and is raised only by a
    `Release` that says so, or begins with what the envelope says; `deliveries` counts hand-outs, or is None where nobody
    counts; `lost` are those since the last verdict whose holder died or vanished, as exactly as `Capabilities.lost` says,
    and `solo` those of them that ran alone after `Receiver.isolate`. A verdict sets both to 0, a `Release` that raises
    `attempt` too. One that only gives back leaves both: `solo` is the evidence that it killed somebody.
    """

    handle: Hashable
    address: Address
    id: str  # of a foreign message without one: made from where it lies, the same at every hand-out
    body: bytes
    key: str | None
    headers: dict[str, str]
    envelope: Envelope
    attempt: int = 1
    deliveries: int | None = None
    lost: int = 0
    solo: int = 0
    since: float | None = (
        None  # backend's now at the first failed try, as given in `Release`; None: as the envelope says
    )
    expires_at: float | None = None  # backend's now
    priority: int = 0
    lease_until: float | None = (
        None  # time.monotonic(), taken before the receive call; None: no lease, or renewed as a whole
    )
    native: Any = None  # what a native client would see: offset, row id, untouched header table


class Done(msgspec.Struct, gc=False):
    """
    Settled for good. The copies (dead letter, staged publishes) become durable before or together with it.

    Where `Capabilities.atomic` they are one transaction; elsewhere the core has confirmed the copies already and
    `copies` is empty.
    """

    delivery: Received
    copies: Sequence[Outgoing] = ()


class Release(msgspec.Struct, gc=False):
    """
    The same message again, in `after` seconds, to whoever of its group asks first.

    `attempt` is None when nothing failed (shutdown, cancellation): counts stay. Otherwise it is the number the next
    hand-out carries, with `since`. A wait or a number is asked for up to `Capabilities.release` only, or with
    `order="key"`, where it is always in place; elsewhere the core sends a delayed copy and then `Done`. With `order="key"` a
    released message keeps its place: no later one of its key is handed out before it, and the core releases all of that key
    which it holds, in order, in one `settle` call.
    """

    delivery: Received
    after: float = 0.0
    attempt: int | None = None
    since: float | None = None


Settlement = Done | Release


class Turn(msgspec.Struct, gc=False):
    """What one `receive` brought. Empty tuples cost nothing."""

    deliveries: Sequence[Received] = ()
    revoked: Sequence[Received] = ()  # no longer ours: another consumer may have them
    refused: Sequence[tuple[Received, MqkitError]] = ()  # settlements without effect: LeaseLost, or why a copy failed


Outcome = tuple[Any, MqkitError | None]


class Publisher(Protocol):
    """Hands messages to the broker and reports what became of each."""

    def submit(self, batch: Sequence[Outgoing]) -> None:
        """Write a batch, or keep it for `collect`; never wait. At most `Capabilities.max_batch` messages."""
        ...

    def collect(self, timeout: float) -> Sequence[Outcome]:
        """Wait for outcomes, a `wake` or the timeout; also serves the connection. Raises `Lost`."""
        ...

    def wake(self) -> None:
        """From any thread, latched: a wake before `collect` makes the next `collect` return at once."""
        ...

    def abandon(self) -> Sequence[Outcome]:
        """
        After `Lost`, or because the bus stops waiting: everything submitted and unanswered, each as `PublishUnknown`, or as
        `PublishFailed` where it is taken back and never sent. `close` follows.
        """
        ...

    @property
    def blocked(self) -> str | None:
        """Why the broker takes nothing now, for health and time-outs; None while it does."""
        ...

    def close(self) -> None:
        """Bounded. Nothing submitted is unanswered, or `abandon` was called."""
        ...


class Receiver(Protocol):
    """Takes messages of one source and settles them."""

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Stage; the next `receive` or `flush` carries them out, in this order, fenced against other consumers."""
        ...

    def receive(self, room: int, timeout: float) -> Turn:
        """
        Carry out what is staged, then take at most `room` messages; wait for one, a `wake` or the timeout.

        It may return early, with nothing. `room` is also what a receiver whose broker pushes should hold beyond what is in
        hand, and 0 is the pause: nothing is taken, the connection is served and leases are renewed all the same. The core
        calls it at least every third of `Capabilities.lease`, and whatever was handed out stays ours as long as it does.
        With timeout 0 it carries out and takes what is there at once: the next message of a key waits for that.

        Raises:
            Lost: All deliveries in hand are void, or the source was deleted.
            Unavailable: The server does not answer, which is found out by asking where the driver would wait for ever.
            Unavailable, Denied, StoreDamaged: Nothing was carried out; what is staged stays staged, call again.
        """
        ...

    def isolate(self, delivery: Received) -> None:
        """Note durably that this delivery, the only one in hand, runs alone: dying now raises its `solo`. Bounded."""
        ...

    def flush(self, timeout: float) -> Turn:
        """
        Carry out what is staged and take nothing; for the last verdicts before `close`, and those before a handler.

        Raises:
            Lost: All deliveries in hand are void.
            Unavailable: Not everything is carried out, as far as the broker has answered within `timeout` seconds.
        """
        ...

    def wake(self) -> None:
        """From any thread, latched: a wake before `receive` makes the next `receive` return at once."""
        ...

    def now(self) -> float:
        """The clock of leases, delays and expiry: reads like seconds since 1970 and never steps. Any thread."""
        ...

    def close(self) -> None:
        """Bounded. Forgets what is staged; gives back what is in hand, uncounted, and no later one of a key may overtake it."""
        ...


class Depth(msgspec.Struct, frozen=True):
    """
    How many messages a source holds: waiting, in somebody's hands, and not yet due (delays and back-offs).

    A message that moves from one to another while they are counted may be missed or counted twice.
    """

    address: Address
    ready: int
    inflight: int
    delayed: int


class Admin(Protocol):
    """Looks at and changes what exists. Blocking, bounded by the backend's own time-outs."""

    def declare(self, declarations: Sequence[Declaration]) -> None:
        """Create what is missing. `TopologyMismatch` names the first option that differs from what exists."""
        ...

    def check(self, declarations: Sequence[Declaration]) -> None:
        """As `declare`, but creates nothing: `NotFound` names what is missing."""
        ...

    def describe(self) -> Sequence[Depth]:
        """
        Every queue and group and their dead letters, also empty ones; topics without groups or with delayed messages.
        """
        ...

    def count(self, address: Address) -> int:
        """How many messages `browse` would show. `NotFound` if there is no such source."""
        ...

    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        """
        Stored messages, oldest first, without consuming them or changing any count; `after` is a message id.

        Handles of the result cannot be settled. Of a queue or group: what waits now. `NotFound` if there is none.
        """
        ...

    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        """
        Remove stored messages by id and publish the copies given for each id once; how many ids were found.

        Every message stored under an id goes: two of one id are two copies of one message.

        Atomic per message where `Capabilities.atomic`, else copies first. An id that is gone is skipped, with its copies.
        """
        ...

    def purge(self, address: Address) -> int:
        """Remove what waits there (not what is in somebody's hands); how many. Safe to repeat."""
        ...

    def delete(self, address: Address) -> None:
        """Remove a queue, topic or group with everything in it, dead letters too. Missing is fine."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """
    What a backend can do. One declaration feeds the start-up checks, the conformance gates, `mqkit capabilities`,
    `mqkit doctor` and the table of guarantees, so a capability is claimed here or not at all.
    """

    name: str
    durable: Literal["yes", "no", "unknown"]  # does an accepted message survive the death of the server's process?
    survives_process: bool  # ... and of the process that published it?
    processes: bool  # may several processes share it?
    atomic: bool  # `Done` and its copies are one transaction; with it promise="exactly_once"
    order_by_key: bool
    delay: float  # longest delay of a publish, 0 for none, inf for any
    release: float  # longest wait of a `Release` without order; 0: neither a wait nor an attempt is kept
    delay_resolution: float
    ttl: bool
    priorities: int  # highest number of priority levels of a queue, 0 for none
    replay: bool  # start="earliest" reaches what a retaining topic keeps
    broadcast: bool
    counts_deliveries: bool  # `Received.deliveries` is known
    lost: Literal["exact", "at_most", "unknown"]  # `Received.lost`: the deaths, those and other returns, or always 0
    lease: (
        float | None
    )  # seconds after which a receiver that was not served (a suspended process too) may have lost what
    # it holds; where that is the connection, as long as the server waits for it. None: nobody can take it away
    wake: float  # longest time until a blocked receive notices a new message of another process
    max_body: int  # bytes, as the backend takes them; a publish keeps 4 KiB of it free
    max_batch: int = 1000  # messages in one submit
    max_inflight: int = 1000  # messages that a publisher has at one time and has not answered
    hold: float = math.inf  # longest wait of a `Release` in order: seconds a message may stay unsettled in its place
    settles_at_once: bool = False  # what `receive` or `flush` has carried out stays so if this process dies
    in_order: bool = True  # what has no key is handed out in the order of publishing, as long as nothing comes again
    shares: bool = (
        True  # the next message goes to whoever has room; else each consumer has a part of the source for itself
    )
    retains: bool = False  # every topic keeps messages for a while, also those without `retain` in their options
    group_commit: bool = False  # one batch is written at a time, and a wait for the disk costs the same for all of it


class Backend(Protocol):
    """
    One messaging system at one URL. Making it parses the URL and connects to nothing.

    The class is what the entry point group `mqkit.backends` names; it is called with the URL and a clock, which only an
    in-process backend obeys (`virtual_clock`).
    """

    virtual_clock: ClassVar[bool]
    capabilities: Capabilities

    def __init__(self, url: Url, clock: Clock) -> None: ...

    def publisher(self) -> Publisher:
        """Connect. On the thread that will own it. Raises `Unavailable`, `Denied`, `ConfigError`."""
        ...

    def receiver(self, source: Declaration, window: int) -> Receiver:
        """
        Connect and stand ready to take messages of a declared source; `window` bounds what it ever holds. `NotFound` if there
        is none.

        Of a broadcast: listening has begun when this returns; `settle` is then a no-op.
        """
        ...

    def admin(self) -> Admin: ...

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        """
        Publish as part of the caller's own transaction, on the calling thread; `native` is what it gave as `native=`.

        Raises:
            CapabilityMissing: This backend has no such thing, or not of this kind.
        """
        ...

    def warnings(self) -> Iterable[str]:
        """What `doctor` and a starting worker say about durability, one sentence each. May connect."""
        ...

    def close(self) -> None:
        """After every publisher, receiver and admin was closed. Idempotent."""
        ...

    def after_fork(self) -> None:
        """In a forked child: forget inherited objects without closing them. The core drops this backend afterwards."""
        ...
