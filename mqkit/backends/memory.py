"""
The memory backend: the reference for every other, and the broker of unit tests.

A source (queue, group, dead letters) is a log of what was never handed out, a heap of what came back, and a heap of what
is not yet due. One lock guards a broker; nobody runs user code under it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from mqkit._clock import Clock
from mqkit._signal import Signal
from mqkit._url import Url, parse_options
from mqkit.backends.base import (
    Address,
    Backend,
    Capabilities,
    Declaration,
    Depth,
    Done,
    Outcome,
    Outgoing,
    Received,
    Settlement,
    Turn,
)
from mqkit.errors import CapabilityMissing, ConfigError, LeaseLost, MqkitError, NotFound, TopologyMismatch

RUN = 32  # most messages of one key handed to one receiver at a time


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """
    URL options of `memory://`.

    Args:
        max_body: Bytes of body and headers; as small as a test wants it.
    """

    max_body: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.max_body <= 4096:
            raise ValueError(f"max_body={self.max_body} must be over 4096, of which that much is kept for dead letters")


class MemoryBackend(Backend):
    """`memory://` is a broker of its own; `memory://name` is one per process, for every bus that names it."""

    virtual_clock: ClassVar[bool] = True

    def __init__(self, url: Url, clock: Clock) -> None:
        options = parse_options(MemoryOptions, url)
        if url.path.strip("/"):
            raise ConfigError(f"{url} has a path; a shared memory broker is memory://name")
        self.capabilities = Capabilities(
            name="memory",
            durable="no",
            survives_process=False,
            processes=False,
            atomic=True,
            order_by_key=True,
            delay=float("inf"),
            release=float("inf"),
            delay_resolution=0.001,
            ttl=True,
            priorities=255,
            replay=True,
            broadcast=True,
            counts_deliveries=True,
            lost="exact",
            lease=None,
            wake=0.0,
            max_body=options.max_body,
            settles_at_once=True,
        )
        self._broker = _named_broker(url.host, clock) if url.host else Broker(clock)

    def publisher(self) -> MemoryPublisher:
        return MemoryPublisher(self._broker)

    def receiver(self, source: Declaration, window: int) -> MemoryReceiver:
        del window  # nothing is fetched ahead
        with self._broker.lock:
            self._broker.decide(source)
        return MemoryReceiver(self._broker, source.address)

    def admin(self) -> MemoryAdmin:
        return MemoryAdmin(self._broker)

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        raise CapabilityMissing(f"native={native!r}: memory:// takes part in no transaction of yours")

    def warnings(self) -> Iterable[str]:
        return ["memory:// keeps messages in this process only: they end with it"]

    def close(self) -> None:
        """The messages stay: a bus that is opened again finds them."""

    def after_fork(self) -> None:
        """The parent's broker is the parent's; `_named` was emptied in this child."""


class Stored(msgspec.Struct, gc=False):
    """A message in one source. `seq` is its place, given when it is due; it keeps it through retries and releases."""

    seq: int
    message: Outgoing
    attempt: int
    expires_at: float | None
    due: float = 0.0
    deliveries: int = 0
    since: float | None = None


class KeyLock:
    """
    One key in use. Either `held` messages of it are with `holder`, or its first one is on its way (ready or not yet
    due); everything else of the key is parked, in order.
    """

    __slots__ = ("held", "holder", "parked")

    def __init__(self, holder: MemoryReceiver | None) -> None:
        self.holder = holder
        self.held = 1
        self.parked: list[tuple[int, Stored]] = []


class Source:
    """A queue, a group or dead letters. Every method is called under the broker's lock."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.fresh: deque[Stored] = deque()  # never handed out, in order
        self.back: list[tuple[int, int, Stored]] = []  # heap (-priority, seq): returned, or with a priority
        self.waiting: list[tuple[float, int, Stored]] = []  # heap (due, seq)
        self.parked = 0
        self.inflight = 0
        self.keys: dict[str, KeyLock] | None = {} if declaration.order == "key" else None
        self.idle: set[MemoryReceiver] = set()  # receivers that wait for a message
        self.places = itertools.count(1)

    def decide(self, declaration: Declaration) -> None:
        """Its first consumer says whether keys keep their order. Nothing was handed out before."""
        self.declaration = msgspec.structs.replace(self.declaration, order=declaration.order)
        self.keys = {} if declaration.order == "key" else None

    def put(self, stored: Stored, now: float) -> None:
        if stored.due > now:
            heapq.heappush(self.waiting, (stored.due, stored.seq, stored))
        elif self.declaration.priorities or stored.deliveries:
            heapq.heappush(self.back, (-stored.message.priority, stored.seq, stored))
        else:
            self.fresh.append(stored)
        if self.idle:
            for receiver in self.idle:
                receiver.ready.set()

    def promote(self, now: float) -> None:
        """What is due: a message that came back has its place, one that was delayed takes the next."""
        while self.waiting and self.waiting[0][0] <= now:
            stored = heapq.heappop(self.waiting)[2]
            if stored.deliveries:
                heapq.heappush(self.back, (-stored.message.priority, stored.seq, stored))
            else:
                stored.seq = next(self.places)
                self.put(stored, now)

    def take(self, receiver: MemoryReceiver, room: int, now: float) -> list[Stored]:
        if self.waiting:
            self.promote(now)
        if self.keys is None and not self.back:
            taken = [self.fresh.popleft() for _ in range(min(room, len(self.fresh)))]
            self.inflight += len(taken)
            return taken
        taken = []
        while len(taken) < room:
            if self.back:
                stored, promoted = heapq.heappop(self.back)[2], True
            elif self.fresh:
                stored, promoted = self.fresh.popleft(), False
            else:
                break
            if self.keys is None or stored.message.key is None:
                taken.append(stored)
            else:
                self._take_keyed(self.keys, stored, receiver, taken, room, promoted, now)
        self.inflight += len(taken)
        return taken

    def _take_keyed(
        self,
        keys: dict[str, KeyLock],
        stored: Stored,
        receiver: MemoryReceiver,
        taken: list[Stored],
        room: int,
        promoted: bool,
        now: float,
    ) -> None:
        key = stored.message.key
        assert key is not None
        lock = keys.get(key)
        if lock is None:
            keys[key] = KeyLock(receiver)
            taken.append(stored)
        elif promoted and not lock.held:
            lock.holder, lock.held = receiver, 1
            taken.append(stored)
            while lock.parked and len(taken) < room and lock.held < RUN and lock.parked[0][1].due <= now:
                taken.append(heapq.heappop(lock.parked)[1])
                self.parked -= 1
                lock.held += 1
        elif lock.holder is receiver and lock.held and not lock.parked and lock.held < RUN:
            lock.held += 1
            taken.append(stored)
        else:
            self._park(lock, stored)

    def done(self, stored: Stored, now: float) -> None:
        self.inflight -= 1
        if self.keys is not None:
            self._unlock(stored, now)

    def returned(self, stored: Stored, now: float) -> None:
        """Back in its place; of a locked key, behind what its holder still has."""
        self.inflight -= 1
        lock = self._lock_of(stored)
        if lock is None:
            self.put(stored, now)
        else:
            self._park(lock, stored)
            self._unlock(stored, now)

    def _park(self, lock: KeyLock, stored: Stored) -> None:
        heapq.heappush(lock.parked, (stored.seq, stored))
        self.parked += 1

    def _unlock(self, stored: Stored, now: float) -> None:
        lock = self._lock_of(stored)
        if lock is None or self.keys is None:
            return
        lock.held -= 1
        if lock.held:
            return
        lock.holder = None
        if not lock.parked:
            del self.keys[stored.message.key or ""]
            return
        first = heapq.heappop(lock.parked)[1]
        self.parked -= 1
        if first.due > now:
            heapq.heappush(self.waiting, (first.due, first.seq, first))
        else:
            heapq.heappush(self.back, (-first.message.priority, first.seq, first))
            for receiver in self.idle:
                receiver.ready.set()

    def _lock_of(self, stored: Stored) -> KeyLock | None:
        return self.keys.get(stored.message.key) if self.keys is not None and stored.message.key is not None else None

    def next_due(self) -> float | None:
        return self.waiting[0][0] if self.waiting else None

    def everything(self) -> list[Stored]:
        """What waits here, in order; not what is in somebody's hands."""
        locked = [stored for lock in (self.keys or {}).values() for _, stored in lock.parked]
        heaps = [entry[2] for entry in (*self.back, *self.waiting)]
        return sorted([*self.fresh, *heaps, *locked], key=lambda stored: stored.seq)

    def remove(self, doomed: set[int]) -> int:
        """Take messages out by `seq`, wherever they wait."""
        before = len(self.fresh) + len(self.back) + len(self.waiting) + self.parked
        self.fresh = deque(stored for stored in self.fresh if stored.seq not in doomed)
        self.back = [entry for entry in self.back if entry[1] not in doomed]
        self.waiting = [entry for entry in self.waiting if entry[1] not in doomed]
        heapq.heapify(self.back)
        heapq.heapify(self.waiting)
        for key, lock in list((self.keys or {}).items()):
            lock.parked = [entry for entry in lock.parked if entry[0] not in doomed]
            heapq.heapify(lock.parked)
            self._restart(key, lock)
        self.parked = sum(len(lock.parked) for lock in (self.keys or {}).values())
        return before - len(self.fresh) - len(self.back) - len(self.waiting) - self.parked

    def _restart(self, key: str, lock: KeyLock) -> None:
        """The message a key waited for may be gone: let the next one go, or forget the key."""
        on_its_way = any(entry[2].message.key == key for entry in (*self.back, *self.waiting))
        if lock.held or on_its_way or self.keys is None:
            return
        if lock.parked:
            first = heapq.heappop(lock.parked)[1]
            heapq.heappush(self.back, (-first.message.priority, first.seq, first))
        else:
            del self.keys[key]


class Topic:
    """What a topic keeps beside its groups: what is not due yet, and what it retains for replay."""

    def __init__(self, declaration: Declaration) -> None:
        self.declaration = declaration
        self.groups: dict[str, Source] = {}
        self.waiting: list[tuple[float, int, Outgoing]] = []  # reaches the groups that exist when it is due
        self.retained: deque[tuple[float, Outgoing]] = deque()

    @property
    def retain(self) -> float:
        return self.declaration.native.retain if self.declaration.native is not None else 0.0


class Broker:
    """All sources, topics and listeners of one memory broker."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.sources: dict[Address, Source] = {}
        self.topics: dict[str, Topic] = {}
        self.broadcasts: dict[str, set[MemoryListenerInbox]] = {}
        self.handles = itertools.count(1)
        self._seq = itertools.count(1)
        clock.subscribe(self._moved)

    def publish(self, message: Outgoing) -> None:
        """Under the lock. Raises `NotFound`."""
        address = message.address
        source = self.sources.get(address)
        if source is not None:
            self._store(source, message)
        elif address.kind == "broadcast" and address.name in self.broadcasts:
            for inbox in self.broadcasts[address.name]:
                inbox.put(message)
        elif address.kind == "topic" and not address.group and address.name in self.topics:
            topic = self.topics[address.name]
            if message.delay:
                entry = (self.clock.now() + message.delay, next(self._seq), message)
                heapq.heappush(topic.waiting, entry)
                self._wake_idle(topic.groups.values())
            else:
                if topic.waiting:
                    self.tick(address, self.clock.now())
                self._fan_out(topic, message, self.clock.now())
        else:
            raise NotFound(f"{address} does not exist on {self!r}")

    def exists(self, address: Address) -> bool:
        if address in self.sources:
            return True
        names: Mapping[str, object] = self.topics if address.kind == "topic" else self.broadcasts
        return not address.group and not address.dead and address.kind != "queue" and address.name in names

    def tick(self, address: Address, now: float) -> None:
        """Under the lock: what a topic's publishers delayed and is due goes to its groups."""
        topic = self.topics.get(address.name) if address.kind == "topic" else None
        while topic is not None and topic.waiting and topic.waiting[0][0] <= now:
            due, _, message = heapq.heappop(topic.waiting)
            self._fan_out(topic, message, due)

    def next_due(self, address: Address) -> float | None:
        topic = self.topics.get(address.name) if address.kind == "topic" else None
        times = [topic.waiting[0][0]] if topic is not None and topic.waiting else []
        own = self.sources[address].next_due() if address in self.sources else None
        return min([*times, own] if own is not None else times, default=None)

    def earliest_due(self) -> float | None:
        """The next moment at which anything becomes due, for those who move a virtual clock."""
        with self.lock:
            topics = [Address("topic", name) for name in self.topics]
            times = [self.next_due(address) for address in (*self.sources, *topics)]
        return min((due for due in times if due is not None), default=None)

    def declare(self, declaration: Declaration, *, create: bool) -> None:
        """Under the lock."""
        address = declaration.address
        existing = self._declaration(address)
        if existing is not None and address in self.sources and address.dead_letters not in self.sources and create:
            self.sources[address.dead_letters] = Source(Declaration(address.dead_letters))
        if existing is None:
            if not create:
                raise NotFound(f"{address} does not exist on {self!r}")
            self._create(declaration)
            return
        for option in ("keyed", "priorities", "order", "native"):
            have, want = getattr(existing, option), getattr(declaration, option)
            undecided = option == "order" and (address not in self.sources or have is None or want is None)
            if have != want and not undecided:
                raise TopologyMismatch(f"{address} exists with {option}={have!r}, and {option}={want!r} is declared")
        if create:
            self.decide(declaration)

    def decide(self, declaration: Declaration) -> None:
        """Under the lock."""
        source = self.sources.get(declaration.address)
        if source is not None and source.declaration.order is None and declaration.order is not None:
            source.decide(declaration)

    def _declaration(self, address: Address) -> Declaration | None:
        if address in self.sources:
            return self.sources[address].declaration
        if address.kind == "topic" and not address.group and address.name in self.topics:
            return self.topics[address.name].declaration
        if address.kind == "broadcast" and address.name in self.broadcasts:
            return Declaration(address)
        return None

    def _create(self, declaration: Declaration) -> None:
        address = declaration.address
        if address.kind == "broadcast":
            self.broadcasts[address.name] = set()
            return
        topic: Topic | None = None
        if address.kind == "topic":
            plain = msgspec.structs.replace(declaration, address=Address("topic", address.name), start="latest")
            topic = self.topics.setdefault(address.name, Topic(plain))
            if not address.group:
                return
            self.tick(address, self.clock.now())  # due before this group was there
        source = self.sources[address] = Source(declaration)
        self.sources[address.dead_letters] = Source(Declaration(address.dead_letters))
        if topic is not None:
            topic.groups[address.group] = source
            if declaration.start == "earliest":
                for at, message in topic.retained:
                    self._store(source, message, at)

    def delete(self, address: Address) -> None:
        """Under the lock."""
        if address.kind == "topic" and not address.group:
            topic = self.topics.pop(address.name, None)
            for group in topic.groups if topic is not None else ():
                self._drop(address._replace(group=group))
        elif address.kind == "broadcast":
            self.broadcasts.pop(address.name, None)
        else:
            if address.kind == "topic" and not address.dead and address.name in self.topics:
                self.topics[address.name].groups.pop(address.group, None)
            self._drop(address)

    def _drop(self, address: Address) -> None:
        for doomed in (address, address.dead_letters):
            source = self.sources.pop(doomed, None)
            if source is not None:
                self._wake_idle([source])

    def _fan_out(self, topic: Topic, message: Outgoing, at: float) -> None:
        for source in topic.groups.values():
            self._store(source, message, at)
        if topic.retain:
            topic.retained.append((at, message))
            while topic.retained and topic.retained[0][0] < at - topic.retain:
                topic.retained.popleft()

    def _store(self, source: Source, message: Outgoing, at: float | None = None) -> None:
        """`at` is when it reached the topic, if it came by one; its delay is over then."""
        expires, due, now = None, 0.0, 0.0
        if message.delay or message.ttl is not None or source.waiting:
            now = self.clock.now()
            source.promote(now)
            if at is None:
                due = now + message.delay if message.delay else 0.0
                at = max(now, due)
            expires = at + message.ttl if message.ttl is not None else None
        source.put(Stored(next(source.places), message, message.envelope.attempt, expires, due), now)

    def _wake_idle(self, sources: Iterable[Source]) -> None:
        for source in sources:
            for receiver in source.idle:
                receiver.ready.set()

    def _moved(self) -> None:
        with self.lock:
            self._wake_idle(self.sources.values())

    def __repr__(self) -> str:
        return "the memory broker"


class MemoryPublisher:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._outcomes: list[Outcome] = []
        self._woken = Signal()

    def submit(self, batch: Sequence[Outgoing]) -> None:
        outcomes, publish = self._outcomes, self._broker.publish
        with self._broker.lock:
            for message in batch:
                try:
                    publish(message)
                    outcomes.append((message.token, None))
                except MqkitError as exc:
                    outcomes.append((message.token, exc))

    def collect(self, timeout: float) -> Sequence[Outcome]:
        if not self._outcomes and timeout > 0:
            self._woken.wait(timeout)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def wake(self) -> None:
        self._woken.set()

    def abandon(self) -> Sequence[Outcome]:
        return self.collect(0)

    blocked: str | None = None

    def close(self) -> None:
        pass


class MemoryReceiver:
    """Of a source, or of a broadcast, where it listens from the moment it is made."""

    def __init__(self, broker: Broker, address: Address) -> None:
        self._broker = broker
        self._address = address
        self.ready = Signal()  # something to look at: a message, a moved clock, a wake
        self._hands: dict[int, Stored] = {}
        self._staged: list[Settlement] = []
        self._woken = False
        self._inbox = MemoryListenerInbox(self) if address.kind == "broadcast" else None
        with broker.lock:
            if not broker.exists(address):
                raise NotFound(f"{address} does not exist on {broker!r}")
            self._of = broker.sources.get(address)
            if self._inbox is not None:
                broker.broadcasts[address.name].add(self._inbox)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        self._staged.extend(settlements)

    def receive(self, room: int, timeout: float) -> Turn:
        deadline = time.monotonic() + timeout
        while True:
            with self._broker.lock:
                refused = self._carry_out() if self._staged else ()
                deliveries = self._take(room) if room else ()
                left = deadline - time.monotonic()
                if deliveries or refused or self._woken or left <= 0:
                    self._woken = False
                    return Turn(deliveries, (), refused)
                left = self._patience(left, room)
                self._watch(True)
            self.ready.wait(left)
            with self._broker.lock:
                self._watch(False)

    def isolate(self, delivery: Received) -> None:
        """Nothing survives the process here, so nothing has to be noted."""

    def flush(self, timeout: float) -> Turn:
        del timeout
        with self._broker.lock:
            return Turn((), (), self._carry_out())

    def wake(self) -> None:
        self._woken = True
        self.ready.set()

    def now(self) -> float:
        return self._broker.clock.now()

    def close(self) -> None:
        with self._broker.lock:
            source = self._source()
            now = self._broker.clock.now()
            for stored in sorted(self._hands.values(), key=lambda stored: stored.seq):
                if source is not None:
                    source.returned(stored, now)
            self._hands.clear()
            if self._inbox is not None:
                self._broker.broadcasts.get(self._address.name, set()).discard(self._inbox)

    def _source(self) -> Source | None:
        """None once it was deleted: what was in hand is gone with it, and a new one of its name is another."""
        return self._of if self._broker.sources.get(self._address) is self._of else None

    def _take(self, room: int) -> list[Received]:
        if self._inbox is not None:
            return [_live(next(self._broker.handles), message) for message in self._inbox.take(room)]
        source = self._source()
        if source is None:
            raise NotFound(f"{self._address} was deleted")
        now = self._broker.clock.now()
        self._broker.tick(self._address, now)
        taken: list[Received] = []
        hands, handles, address = self._hands, self._broker.handles, self._address
        for stored in source.take(self, room, now):
            message = stored.message
            stored.deliveries += 1
            handle = next(handles)
            hands[handle] = stored
            received = Received(
                handle, address, message.id, message.body, message.key, message.headers, message.envelope,
                stored.attempt, stored.deliveries, 0, 0, stored.since, stored.expires_at, message.priority, None, stored.seq,
            )  # fmt: skip
            taken.append(received)
        return taken

    def _carry_out(self) -> Sequence[tuple[Received, MqkitError]]:
        broker = self._broker
        source = self._source()
        now = broker.clock.now()
        staged, self._staged = self._staged, []
        refused: list[tuple[Received, MqkitError]] = []
        for settlement in staged:
            received = settlement.delivery
            handle: Any = received.handle
            stored = self._hands.get(handle)
            if stored is None or source is None:
                refused.append((received, LeaseLost(f"{received.id} of {self._address} is not in hand any more")))
                continue
            if isinstance(settlement, Done):
                copies = settlement.copies
                if copies and (gone := [copy.address for copy in copies if not broker.exists(copy.address)]):
                    refused.append((received, NotFound(f"{gone[0]} does not exist on {broker!r}")))
                    continue
                for copy in copies:
                    broker.publish(copy)
                source.done(stored, now)
            else:
                stored.due = now + settlement.after if settlement.after else 0.0
                if settlement.attempt is not None:
                    stored.attempt, stored.since = settlement.attempt, settlement.since
                source.returned(stored, now)
            del self._hands[handle]
        return refused

    def _patience(self, left: float, room: int) -> float:
        """How long nothing can happen by itself. A virtual clock wakes us when it is moved."""
        if room and not self._broker.clock.virtual:
            due = self._broker.next_due(self._address)
            if due is not None:
                return min(left, max(0.0005, due - self._broker.clock.now()))
        return left

    def _watch(self, on: bool) -> None:
        """Under the lock: be told, or not any more, when the source gets something."""
        source = self._source()
        if source is not None:
            (source.idle.add if on else source.idle.discard)(self)


def _live(handle: int, message: Outgoing) -> Received:
    return Received(
        handle, message.address, message.id, message.body, message.key, message.headers, message.envelope, deliveries=1
    )


class MemoryListenerInbox:
    """What a listener has not taken yet. Bounded: a listener that is too slow loses the oldest, nobody waits for it."""

    def __init__(self, receiver: MemoryReceiver) -> None:
        self._receiver = receiver
        self._messages: deque[Outgoing] = deque(maxlen=10_000)

    def put(self, message: Outgoing) -> None:
        self._messages.append(message)
        self._receiver.ready.set()

    def take(self, room: int) -> list[Outgoing]:
        return [self._messages.popleft() for _ in range(min(room, len(self._messages)))]


class MemoryAdmin:
    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def declare(self, declarations: Sequence[Declaration]) -> None:
        with self._broker.lock:
            for declaration in declarations:
                self._broker.declare(declaration, create=True)

    def check(self, declarations: Sequence[Declaration]) -> None:
        with self._broker.lock:
            for declaration in declarations:
                self._broker.declare(declaration, create=False)

    def describe(self) -> Sequence[Depth]:
        with self._broker.lock:
            now = self._broker.clock.now()
            depths = []
            for address, source in self._broker.sources.items():
                delayed = sum(entry[0] > now for entry in source.waiting)
                ready = len(source.fresh) + len(source.back) + source.parked + len(source.waiting) - delayed
                depths.append(Depth(address, ready, source.inflight, delayed))
            for name, topic in self._broker.topics.items():
                if not topic.groups or topic.waiting:
                    depths.append(Depth(Address("topic", name), 0, 0, len(topic.waiting)))
            return depths

    def count(self, address: Address) -> int:
        with self._broker.lock:
            return len(self._source(address).everything())

    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        with self._broker.lock:
            stored = self._source(address).everything()
            if after is not None:
                places = [place for place, one in enumerate(stored) if one.message.id == after]
                stored = stored[places[-1] + 1 :] if places else []
            return [
                Received(
                    None,
                    address,
                    one.message.id,
                    one.message.body,
                    one.message.key,
                    one.message.headers,
                    one.message.envelope,
                    one.attempt,
                    one.deliveries,
                    expires_at=one.expires_at,
                    priority=one.message.priority,
                    native=one.seq,
                )
                for one in stored[:limit]
            ]

    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        with self._broker.lock:
            source = self._source(address)
            found = [one for one in source.everything() if one.message.id in replacements]
            ids = dict.fromkeys(one.message.id for one in found)
            for copy in [copy for id in ids for copy in replacements[id]]:
                self._broker.publish(copy)
            source.remove({one.seq for one in found})
            return len(ids)

    def purge(self, address: Address) -> int:
        with self._broker.lock:
            source = self._source(address)
            return source.remove({one.seq for one in source.everything()})

    def delete(self, address: Address) -> None:
        with self._broker.lock:
            self._broker.delete(address)

    def parked(self) -> int:
        """Messages that `describe` counts as ready and whose turn has not come: an earlier one of their key is not done."""
        with self._broker.lock:
            return sum(source.parked for source in self._broker.sources.values())

    def next_due(self) -> float | None:
        """For those who move a virtual clock."""
        return self._broker.earliest_due()

    def close(self) -> None:
        pass

    def _source(self, address: Address) -> Source:
        source = self._broker.sources.get(address)
        if source is None:
            raise NotFound(f"{address} does not exist on {self._broker!r}")
        return source


_named: dict[str, Broker] = {}  # memory://name: one per process
_naming = threading.Lock()


def _named_broker(name: str, clock: Clock) -> Broker:
    with _naming:
        broker = _named.setdefault(name, Broker(clock))
    if broker.clock is not clock and (broker.clock.virtual or clock.virtual):
        raise ConfigError(f"memory://{name} runs by another clock already; give every bus of it the same one")
    return broker


def _after_fork() -> None:
    global _naming
    _naming = threading.Lock()  # it may have been held by a thread that the child does not have
    _named.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
