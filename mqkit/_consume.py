"""The consume pump: one thread that takes messages of one source, has them handled, and settles them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from mqkit._crew import Crew
from mqkit._ids import derived_id
from mqkit._lanes import Lanes
from mqkit._publish import PublishPump
from mqkit._topology import Topology
from mqkit.backends.base import Backend, Declaration, Done, Outgoing, Received, Receiver, Release, Settlement, Turn
from mqkit.destinations import Destination
from mqkit.envelope import Dead
from mqkit.errors import CapabilityMissing, ConfigError, LeaseLost, Lost, MqkitError, Unavailable
from mqkit.handlers import Batch, Promise, Where
from mqkit.message import Delivery, PublishOptions
from mqkit.patterns.retry import Retry, judge
from mqkit.verdicts import Ack, Reject, Verdict

log = logging.getLogger("mqkit")

WINDOW = 1000  # most messages one consumer holds
AHEAD = 0.1  # seconds of work it may hold beyond what runs, measured by what it has handled
LOOK = 0.05  # seconds over which that is measured
QUICK_LOOK, ENOUGH = 0.005, 100  # ... or these, when so many were handled: a fast start for fast handlers
RESTART = (0.1, 10.0)  # first and longest wait before a failed loop starts again
ANSWER = 5.0  # seconds a handler waits to hear whether its delivery is still ours
COPY_RETRY = 1.0  # seconds a delivery waits when the broker would not take its copies just now
COPIES = 5.0  # seconds a stop waits beyond its grace for copies that are with the broker
REASON_BYTES = 2000

AttemptOutcome = Literal["done", "retry", "dead", "released", "skipped", "failed"]


class Attempt(msgspec.Struct, frozen=True):
    """One attempt as a trace shows it. `at` is the backend's clock; `error` what was raised, or None."""

    message_id: str
    destination: str
    group: str | None
    attempt: int
    at: float
    outcome: AttemptOutcome
    error: BaseException | None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one consumer does, with every default filled in."""

    name: str
    destination: Destination[Any]
    group: str | None
    declaration: Declaration
    retry: Retry
    promise: Promise
    concurrency: int
    timeout: float | None
    window: int | None  # fixed (pull), or None: adapted to how fast handlers are
    batch: Batch | None
    where: Where | None
    manual: bool

    @property
    def ordered(self) -> bool:
        return self.declaration.order == "key"

    @property
    def live(self) -> bool:
        return self.destination.kind == "broadcast"


class Sender(Protocol):
    """The publishing side of a bus, as a consumer needs it."""

    @property
    def publish_pump(self) -> PublishPump: ...

    def prepare(
        self, to: Destination[Any], payload: Any, options: Mapping[str, Any], *, id: str = "", staged: bool = False
    ) -> Outgoing: ...


class _Skipped(BaseException):
    """`where` said no."""


class _Confirmed(BaseException):
    """The copies that go elsewhere are there, or failed with `error`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Ending(msgspec.Struct, frozen=True):
    """
    How a delivery ends once its copies are safe. A copy goes through a bus of its own, or (None) through this one.

    `sent` are those on their way, which are not repeated once they are confirmed.
    """

    copies: Sequence[tuple[Any, Outgoing]]
    outcome: AttemptOutcome
    error: BaseException | None
    sent: Sequence[tuple[Any, Outgoing]] = ()


class Counts(msgspec.Struct):
    """What became of deliveries since the consumer started."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0
    skipped: int = 0
    failed: int = 0  # live or at most once: gone
    stale: int = 0  # verdicts for deliveries that were not ours any more


INTERRUPTIONS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit)


class ConsumePump:
    """
    Owns one `Receiver`.

    `inflight`, lanes and the forming batch belong to the thread. Handlers append to `verdicts` and wake it at most once
    per turn. `waiting` holds what is handed to the crew and not begun: who pops it first, the worker or the pump giving
    it back, has it.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        topology: Topology,
        sender: Sender,
        observe: Callable[[Attempt], None] | None,
    ) -> None:
        self.settings = settings
        self.destination = settings.destination
        self.group = settings.group
        self.explicit = settings.manual
        self.by_member = settings.batch is not None
        self.counts = Counts()
        self.state = "starting"  # starting, running, failed: why, stopped
        self.failed: MqkitError | None = None  # why the source could not be opened, if for good
        self.running = threading.Event()
        self._backend = backend
        self._can = backend.capabilities
        self._topology = topology
        self._sender = sender
        self._observe = observe
        self._crew: Crew | None = None
        self._receiver: Receiver | None = None
        self._inflight: dict[Any, Delivery[Any]] = {}
        self._waiting: dict[Any, Delivery[Any]] = {}
        self._endings: dict[Any, _Ending] = {}  # of deliveries whose copies are on their way elsewhere
        self._verdicts: deque[tuple[Delivery[Any], BaseException | None]] = deque()
        self._armed = False
        self._lanes = Lanes() if settings.ordered else None
        self._forming: list[Delivery[Any]] = []
        self._forming_since = 0.0
        self._suspects: list[Delivery[Any]] = []
        self._parked: list[tuple[float, Delivery[Any]]] = []  # when to try again with the copies of what stays in hand
        self._next: list[Delivery[Any]] = []  # start once the settlement before them in their key is carried out
        self._held: list[Delivery[Any]] = []  # came with a suspect: given back at once, never started
        self._alone: Delivery[Any] | None = None
        self._early = settings.promise == "at_most_once" or settings.live
        self._direct = settings.batch is None and not settings.ordered  # nothing waits for others of its kind
        self._timeout, self._where = settings.timeout, settings.where
        # At most once a delivery was settled before, and is ours whatever happened since.
        self._half_lease = None if self._can.lease is None or self._early else self._can.lease / 2
        self._now: Callable[[], float] = time.time
        self._served_at = time.monotonic()
        self._asked_in_vain = 0.0
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._hungry = False
        self._finished = 0  # since _measured
        self._measured = time.monotonic()
        least = settings.concurrency if settings.batch is None else settings.batch.size * settings.concurrency
        self._least = min(max(least * 2, 16), 20_000)
        self._window = settings.window or self._least
        self._thread = threading.Thread(target=self._run, name=f"mqkit-consume-{settings.name}", daemon=True)

    # -- the worker and the user -----------------------------------------------------------------------------------

    def start(self, crew: Crew) -> None:
        self._crew = crew
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Begin to stop; `join` waits."""
        self._deadline = time.monotonic() + grace
        self._stopping.set()
        self._wake()

    def join(self, timeout: float) -> bool:
        if self._thread.ident is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def busy(self) -> bool:
        """Is anything in hand, running or unsettled?"""
        return bool(self._inflight or self._verdicts or self._suspects)

    @property
    def in_hand(self) -> int:
        return len(self._inflight)

    @property
    def only_waits_for_its_batch(self) -> bool:
        """Is all it holds in a batch that is not full, so that only time can move it on?"""
        return bool(self._forming) and len(self._forming) == len(self._inflight) and not self._verdicts

    def next_due(self) -> float | None:
        """When a forming batch is handed over for its age, by the backend's clock."""
        batch = self.settings.batch
        return self._forming_since + batch.age if batch is not None and self._forming else None

    def stuck(self) -> int:
        return self._crew.stuck() if self._crew is not None else 0

    def clock_moved(self) -> None:
        self._wake()

    def stage(
        self, delivery: Delivery[Any], to: Destination[Any], payload: Any, via: Any, options: PublishOptions
    ) -> Outgoing:
        sender: Sender = self._sender
        if via is not None:
            if self.settings.promise == "exactly_once":
                raise ConfigError('delivery.publish(via=...): another bus cannot be part of promise="exactly_once"')
            sender = via
        position = len(delivery._staged or ())
        id = derived_id(f"{self.settings.name}\0{delivery.id}", self.group or "", position)
        return sender.prepare(to, payload, options, id=id, staged=True)

    def begin(self, work: Any) -> Any:
        """On a worker, right before the handler: what of it is still ours and should run."""
        if self.by_member:
            return [delivery for delivery in work if self._begin(delivery)]
        return work if self._begin(work) else None

    def _begin(self, delivery: Delivery[Any]) -> bool:
        received = delivery._received
        slept = self._half_lease is not None and time.monotonic() - self._served_at > self._half_lease
        if slept and not self._ask_first():
            if self._waiting.pop(received.handle, None) is delivery:
                delivery._settled = True
                self.finish(delivery, asyncio.CancelledError())  # released, uncounted, once the backend answers
            return False
        if received.lease_until is not None and time.monotonic() > received.lease_until:
            return False
        if self._waiting.pop(received.handle, None) is not delivery:
            return False  # given back or revoked meanwhile
        if self._timeout is not None:
            delivery.deadline = time.monotonic() + self._timeout
        if received.expires_at is not None and received.expires_at <= self._now():
            delivery._settled = True
            self.finish(delivery, Reject("expired: its ttl passed before a handler could start"))
            return False
        return self._where is None or self._wanted(delivery, self._where)

    def _wanted(self, delivery: Delivery[Any], where: Where) -> bool:
        try:
            if where(delivery.message):
                return True
            outcome: BaseException = _Skipped()
        except Exception as exc:  # noqa: BLE001  a filter that raises is a failed attempt
            outcome = exc
        delivery._settled = True
        self.finish(delivery, outcome)
        return False

    def _ask_first(self) -> bool:
        """
        This process slept longer than half a lease: what it holds may be another's by now. Did the backend answer?

        The pump's next turn asks it and takes revoked deliveries out of `waiting`. Where one has waited in vain for the
        answer, the others do not wait again.
        """
        asked = self._asked_in_vain
        if self._served_at >= asked:
            asked = time.monotonic()
            self._wake()
            while self._served_at < asked and time.monotonic() < asked + ANSWER and not self._stopping.wait(0.005):
                self._wake()  # the turn that slept may have taken the one before
        if self._served_at >= asked:
            return True
        self._asked_in_vain = asked
        return False

    def conclude(self, work: Any, outcome: BaseException | None) -> None:
        """On a worker, after the handler."""
        if not self.by_member and not self.explicit:
            work._settled = True
            self.finish(work, outcome)
            return
        for delivery in work if self.by_member else (work,):
            if delivery._settled or (self.explicit and outcome is None):
                continue  # its handler settles, or has
            delivery._settled = True
            self.finish(delivery, outcome)

    def finish(self, delivery: Delivery[Any], outcome: BaseException | None) -> None:
        """From any thread: what became of a delivery. None is success."""
        self._verdicts.append((delivery, outcome))
        if not self._armed:
            self._armed = True
            receiver = self._receiver
            if receiver is not None:
                receiver.wake()

    def _wake(self) -> None:
        receiver = self._receiver
        if receiver is not None:
            receiver.wake()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait = RESTART[0]
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                receiver = self._open()
            except MqkitError as exc:
                self.state = f"failed: {exc}"
                self.failed = None if exc.retryable else exc
                log.warning("consumer.cannot_start", extra={"source": self.settings.name, "error": str(exc)})
            except Exception as exc:
                self.state = f"failed: {type(exc).__name__}: {exc}"
                log.exception("consumer.cannot_start", extra={"source": self.settings.name})
            else:
                try:
                    self._serve(receiver)
                except Unavailable as exc:  # lost, or it would not even flush
                    self.state = f"failed: {exc}"
                    log.warning("consumer.lost", extra={"source": self.settings.name, "error": str(exc)})
                except Exception as exc:  # never a silent dead loop: said in health(), and started again
                    self.state = f"failed: {type(exc).__name__}: {exc}"
                    log.exception("consumer.failed", extra={"source": self.settings.name})
                finally:
                    self._forget()
                    self._receiver = None
                    with contextlib.suppress(MqkitError):  # it may be what has just failed
                        receiver.close()
            if self._stopping.is_set():
                break
            if time.monotonic() - began > RESTART[1]:
                wait = RESTART[0]
            self._stopping.wait(wait * (0.5 + random.random() / 2))
            wait = min(RESTART[1], wait * 2)
        self.state = "stopped"
        self.running.set()
        if self._crew is not None:
            self._crew.stop()

    def _open(self) -> Receiver:
        # What this process knew to exist may be what the broker has just lost: ask again, every time.
        self._topology.forget([self.settings.declaration.address])
        self._topology.ensure(self._backend, [self.settings.declaration.address])
        receiver = self._backend.receiver(self.settings.declaration, self.settings.window or max(WINDOW, self._least))
        self._receiver, self._now = receiver, receiver.now
        self._served_at = time.monotonic()
        self.state, self.failed = "running", None
        self.running.set()
        return receiver

    def _serve(self, receiver: Receiver) -> None:
        crew = self._crew
        assert crew is not None
        trouble = RESTART[0]
        while True:
            self._armed = False
            # Read before draining: whoever settled and then stopped us must find it carried out.
            stopping = self._stopping.is_set()
            if self._parked:
                self._unpark()
            if settlements := self._drain():
                receiver.settle(settlements)
            if self._suspects:
                self._isolate(receiver)
            if stopping and self._stopped(receiver):
                return
            room = 0 if stopping or self._suspects else max(0, self._window - len(self._inflight))
            asked = time.monotonic()
            try:
                turn = receiver.receive(room, self._patience())
            except Lost:
                raise
            except MqkitError as exc:
                if not exc.retryable:
                    raise
                self.state = f"failed: {exc}"
                self._stopping.wait(trouble)
                trouble = min(RESTART[1], trouble * 2)
                continue
            if trouble != RESTART[0] or self.state != "running":
                trouble, self.state = RESTART[0], "running"
            if turn.revoked or turn.refused:
                self._lose(receiver, turn)
            self._served_at = asked  # not now: the process may have slept inside, after the backend was asked
            if self._next:
                self._start_next()
            if turn.deliveries:
                self._admit(receiver, turn.deliveries)
            if self._forming:
                self._hand_over_batch()
            self._hungry = crew.turn_end()

    def _patience(self) -> float:
        """How long `receive` may block."""
        if self._verdicts or self._next:
            return 0.0
        if self._hungry:
            return 0.002
        longest = 0.05 if self._stopping.is_set() else 1.0
        if self._can.lease is not None:
            longest = min(longest, self._can.lease / 4)
        if self._parked:
            longest = min(longest, max(0.0, min(self._parked)[0] - time.monotonic()))
        due = self.next_due()
        return longest if due is None else max(0.0, min(longest, due - self._now()))

    def _adapt(self) -> None:
        """Hold what the handlers can do in a moment, and no more: another process may have idle ones."""
        now = time.monotonic()
        elapsed = now - self._measured
        if elapsed < (QUICK_LOOK if self._finished >= ENOUGH else LOOK):
            return
        ahead = int(self._finished / elapsed * AHEAD)
        self._window = min(max(WINDOW, self._least), self._least + ahead)
        self._finished, self._measured = 0, now

    # -- arriving --------------------------------------------------------------------------------------------------

    def _admit(self, receiver: Receiver, deliveries: Sequence[Received]) -> None:
        if self._early:
            deliveries = self._settle_early(receiver, deliveries)
        crashes, direct = self.settings.retry.crashes, self._direct
        inflight, waiting, start = self._inflight, self._waiting, self._crew.start  # type: ignore[union-attr]
        for received in deliveries:
            delivery: Delivery[Any] = Delivery(received, self)
            handle = received.handle
            inflight[handle] = delivery
            if received.lost >= crashes:
                self._suspects.append(delivery)
            elif self._suspects:
                self._held.append(delivery)
            elif direct:
                waiting[handle] = delivery
                start(delivery)
            elif self.settings.batch is not None:
                self._join_batch(delivery)
            elif self._lanes is None or self._lanes.admit(delivery):
                self._start(delivery)

    def _settle_early(self, receiver: Receiver, deliveries: Sequence[Received]) -> Sequence[Received]:
        """At most once: settled, durably, before any handler starts. What could not be settled is not handled."""
        if self.settings.live:
            return deliveries
        receiver.settle([Done(received) for received in deliveries])
        refused = {received.handle for received, _ in receiver.flush(5.0).refused}
        return [received for received in deliveries if received.handle not in refused]

    def _start(self, delivery: Delivery[Any]) -> None:
        self._waiting[delivery._received.handle] = delivery
        self._crew.start(delivery)  # type: ignore[union-attr]

    def _join_batch(self, delivery: Delivery[Any]) -> None:
        assert self.settings.batch is not None
        if self._lanes is not None and not self._lanes.admit(delivery, self._forming):
            return
        if not self._forming:
            self._forming_since = self._now()
        self._forming.append(delivery)
        if len(self._forming) >= self.settings.batch.size:
            self._hand_over_batch()

    def _hand_over_batch(self) -> None:
        batch = self.settings.batch
        assert batch is not None
        if len(self._forming) < batch.size and self._now() < self._forming_since + batch.age:
            return
        work, self._forming = self._forming, []
        work = [delivery for delivery in work if delivery._received.handle in self._inflight]  # not those revoked since
        for delivery in work:
            self._waiting[delivery._received.handle] = delivery
        self._crew.start(work)  # type: ignore[union-attr]

    # -- settling --------------------------------------------------------------------------------------------------

    def _drain(self) -> list[Settlement]:
        out: list[Settlement] = []
        verdicts, inflight, lanes = self._verdicts, self._inflight, self._lanes
        early, observed = self._early, self._observe is not None
        finished = done = 0
        while verdicts:
            delivery, outcome = verdicts.popleft()
            received = delivery._received
            handle = received.handle
            if inflight.get(handle) is not delivery:
                self.counts.stale += 1
                continue
            finished += 1
            if outcome is None and delivery._staged is None and not early:
                out.append(Done(received))
                done += 1
                if observed:
                    self._trace(delivery, "done", None)
            else:
                settled = self._conclude(delivery, outcome)
                if settled is None:
                    continue  # copies are on their way elsewhere, it stays in hand
                out.extend(settled)
                self._waiting.pop(handle, None)
            del inflight[handle]
            if delivery is self._alone:
                self._alone = None
                self._suspects.clear()
            if lanes is not None:
                again = bool(out) and out[-1].__class__ is Release and out[-1].delivery is received
                self._advance(lanes, delivery, again, out)
        self._finished += finished
        self.counts.done += done
        if not self.settings.window:
            self._adapt()
        return out

    def _advance(self, lanes: Lanes, delivery: Delivery[Any], again: bool, out: list[Settlement]) -> None:
        ready, back = lanes.finished(delivery, again=again)
        for follower in back:
            self._inflight.pop(follower._received.handle, None)
            out.append(Release(follower._received))
        if self._stopping.is_set() or self._suspects:
            # Their place in the key is kept by the backend; nothing new starts now.
            for follower in ready:
                if self._inflight.pop(follower._received.handle, None) is not None:
                    out.append(Release(follower._received))
            return
        self._next += ready

    def _start_next(self) -> None:
        """What stood in its key behind messages that are settled now, also in the eyes of whoever takes over from us."""
        ready, self._next = self._next, []
        for follower in ready:
            if self._inflight.get(follower._received.handle) is not follower:
                continue
            if self.settings.batch is not None:
                self._join_batch(follower)
            elif self._lanes is None or self._lanes.admit(follower):
                self._start(follower)

    def _conclude(self, delivery: Delivery[Any], outcome: BaseException | None) -> Sequence[Settlement] | None:
        """How to settle anything but a plain success: with nothing where that was done before. None: not yet."""
        received = delivery._received
        if isinstance(outcome, _Skipped):
            self.counts.skipped += 1
            self._trace(delivery, "skipped", None)
            return () if self._early else (Done(received),)
        if self._early:
            if outcome is not None:
                log.error("message.failed", extra={**self._where_from(delivery), "error": repr(outcome)})
            self._note(delivery, "done" if outcome is None else "failed", outcome)
            if outcome is None:  # nothing is left to settle with, so what the handler staged is simply published
                for via, message in delivery._staged or ():
                    (via or self._sender).publish_pump.send(message)
            return ()
        if isinstance(outcome, _Confirmed):
            return self._confirmed(delivery, outcome.error)
        if outcome is None or isinstance(outcome, Ack):
            return self._complete(delivery, _Ending(delivery._staged or (), "done", None))
        if isinstance(outcome, INTERRUPTIONS):
            return self._again(delivery, "released", outcome, after=0.0 if self._stopping.is_set() else COPY_RETRY)
        return self._failed(delivery, outcome)

    def _again(
        self,
        delivery: Delivery[Any],
        outcome: AttemptOutcome,
        error: BaseException | None,
        *,
        after: float,
        attempt: int | None = None,
        since: float | None = None,
    ) -> Sequence[Settlement] | None:
        """The same message later: kept in its place where the backend can, otherwise a copy that is delayed."""
        received, longest = delivery._received, self._can.release
        in_place = after <= longest if longest else not after and attempt is None
        if self.settings.ordered or in_place:
            self._note(delivery, outcome, error)
            return (Release(received, after, attempt, since),)
        copy = later(received, min(after, self._can.delay), attempt, since, self._now())
        copy.partitions = self.destination.partitions
        return self._complete(delivery, _Ending(((None, copy),), outcome, error))

    def _failed(self, delivery: Delivery[Any], error: BaseException) -> Sequence[Settlement] | None:
        received = delivery._received
        now = self._now()
        since = received.since if received.since is not None else received.envelope.since or now
        verdict = judge(
            self.settings.retry, error, attempt=received.attempt, waited=now - since, chance=random.random()
        )
        raised = None if isinstance(error, Verdict) else error
        if isinstance(verdict, Reject):
            log.warning("message.rejected", extra={**self._where_from(delivery), "reason": verdict.reason})
            letter = self._dead_letter(delivery, verdict.reason, raised, now)
            return self._complete(delivery, _Ending(((None, letter),), "dead", raised))
        after: float = getattr(verdict, "after", 0.0)
        return self._again(delivery, "retry", raised, after=after, attempt=received.attempt + 1, since=since)

    def _complete(self, delivery: Delivery[Any], ending: _Ending) -> Sequence[Settlement] | None:
        """
        Settle for good, with copies: those the backend cannot take into the same transaction are sent and confirmed
        first, while the delivery stays in hand. None: that is under way.
        """
        if elsewhere := [copy for copy in ending.copies if copy[0] is not None or not self._can.atomic]:
            here = [copy for copy in ending.copies if copy not in elsewhere]
            self._endings[delivery._received.handle] = _Ending(here, ending.outcome, ending.error, elsewhere)
            self._send(delivery, elsewhere)
            return None
        copies = [message for _, message in ending.copies]
        if copies and self._topology.missing({copy.address for copy in copies}):
            try:
                self._topology.ensure(self._backend, [copy.address for copy in copies])
            except MqkitError as exc:
                return self._copies_failed(delivery, ending, exc)
        self._note(delivery, ending.outcome, ending.error)
        return (Done(delivery._received, copies),)

    def _confirmed(self, delivery: Delivery[Any], error: BaseException | None) -> Sequence[Settlement] | None:
        ending = self._endings.pop(delivery._received.handle)
        if error is not None:
            return self._copies_failed(delivery, ending, error)
        return self._complete(delivery, ending)

    def _copies_failed(
        self, delivery: Delivery[Any], ending: _Ending, error: BaseException
    ) -> Sequence[Settlement] | None:
        """Copies could not be sent. Not the handler's fault if it may work later, and never the end of the message."""
        later = isinstance(error, MqkitError) and error.retryable
        if ending.outcome == "done" and not later:
            return self._failed(delivery, error)
        log.warning("copies.delayed", extra={**self._where_from(delivery), "error": str(error)})
        if self.settings.ordered or self._can.release >= COPY_RETRY:
            self._note(delivery, "released", error)
            return (Release(delivery._received, COPY_RETRY),)
        # To wait elsewhere it would need a copy too: it stays in hand, and only its copies are tried again.
        self._endings[delivery._received.handle] = _Ending([*ending.copies, *ending.sent], ending.outcome, ending.error)
        self._parked.append((time.monotonic() + COPY_RETRY, delivery))
        return None

    def _unpark(self) -> None:
        """Try again with what waits in hand for the broker to take its copies."""
        now = time.monotonic()
        due = [delivery for at, delivery in self._parked if at <= now]
        self._parked = [(at, delivery) for at, delivery in self._parked if at > now]
        self._verdicts.extend((delivery, _Confirmed(None)) for delivery in due)

    def _dead_letter(self, delivery: Delivery[Any], reason: str, error: BaseException | None, now: float) -> Outgoing:
        received = delivery._received
        dead = Dead(
            reason=reason.encode(errors="replace")[:REASON_BYTES].decode(errors="ignore"),
            error_type=type(error).__name__ if error is not None else "",
            attempts=received.attempt,
            origin=str(received.address),
            died_at=now,
            priority=received.priority,
        )
        envelope = msgspec.structs.replace(received.envelope, attempt=1, since=0.0, dead=dead)
        return Outgoing(
            received.address.dead_letters, received.id, received.body, received.key, received.headers, envelope
        )

    def _send(self, delivery: Delivery[Any], elsewhere: Sequence[tuple[Any, Outgoing]]) -> None:
        """Publish copies; when the last one is answered, a verdict says so."""
        left = len(elsewhere)
        first_error: list[BaseException] = []
        lock = threading.Lock()

        def confirmed(ticket: Any) -> None:
            nonlocal left
            error = ticket.exception()
            with lock:
                left -= 1
                if error is not None:
                    first_error.append(error)
                if left:
                    return
            self.finish(delivery, _Confirmed(first_error[0] if first_error else None))

        for via, message in elsewhere:
            (via or self._sender).publish_pump.send(message).add_done_callback(confirmed)

    # -- losing, isolating, stopping -------------------------------------------------------------------------------

    def _lose(self, receiver: Receiver, turn: Turn) -> None:
        for received in turn.revoked:
            delivery = self._inflight.pop(received.handle, None)
            self._waiting.pop(received.handle, None)
            self._endings.pop(received.handle, None)
            self._suspects = [one for one in self._suspects if one is not delivery]
            if self._alone is delivery:
                self._alone = None
            if delivery is not None and self._lanes is not None:
                for follower in self._lanes.dropped(delivery):
                    self._inflight.pop(follower._received.handle, None)
        again: list[Settlement] = []
        for received, error in turn.refused:
            if isinstance(error, LeaseLost):
                self.counts.stale += 1
                continue
            # The backend would not take a copy, likely because its destination is gone: nothing happened, the original
            # is still ours. It comes again soon, and what its copies need is declared again.
            self._topology.forget()
            log.warning("copies.delayed", extra={"source": self.settings.name, "error": str(error)})
            if self.settings.ordered or self._can.release >= COPY_RETRY:
                again.append(Release(received, COPY_RETRY))
            else:
                delivery = self._inflight[received.handle] = Delivery(received, self)
                self._verdicts.append((delivery, asyncio.CancelledError()))
        if again:
            receiver.settle([*again, *self._hold_back({each.delivery.key for each in again}, turn)])
        if turn.revoked:
            log.warning("deliveries.revoked", extra={"source": self.settings.name, "count": len(turn.revoked)})

    def _hold_back(self, keys: set[str | None], turn: Turn) -> list[Settlement]:
        """Of keys whose first message comes again: what would start now behind it goes back too, in order."""
        if self._lanes is None:
            return []
        keys.discard(None)
        back = [delivery._received for delivery in self._next if delivery.key in keys]
        self._next = [delivery for delivery in self._next if delivery.key not in keys]
        for received in back:
            self._inflight.pop(received.handle, None)
        back += [received for received in turn.deliveries if received.key in keys]
        turn.deliveries = [received for received in turn.deliveries if received.key not in keys]
        return [Release(received) for received in back]

    def _isolate(self, receiver: Receiver) -> None:
        """
        One was handed out too often without a verdict. Give back what has not begun, wait for what runs, then run it
        with nothing else in hand. If that killed its process before, it is the culprit and not a neighbour.
        """
        if self._alone is not None:
            return
        back = self._give_back(keep=self._suspects)
        if back:
            receiver.settle(back)
        if len(self._inflight) > len(self._suspects):
            return
        first, others = self._suspects[0], self._suspects[1:]
        self._suspects = [first]
        if others:
            receiver.settle([Release(other._received) for other in others])
            for other in others:
                del self._inflight[other._received.handle]
        self._lose(receiver, receiver.flush(5.0))
        if first._received.handle not in self._inflight:
            self._suspects.clear()
            return
        self._alone = first
        if self._lanes is not None:
            self._lanes.clear()
            self._lanes.admit(first)
        if first._received.solo:
            times = first._received.lost
            self._verdicts.append((first, Reject(f"crashes: {times} hand-outs ended with the death of their process")))
            return
        receiver.isolate(first._received)
        self._waiting[first._received.handle] = first
        self._crew.start([first] if self.settings.batch is not None else first)  # type: ignore[union-attr]

    def _give_back(self, keep: Sequence[Delivery[Any]] = ()) -> list[Settlement]:
        """Release what no handler has begun, in the order it came."""
        back: list[Settlement] = []
        kept = {id(delivery) for delivery in keep}
        followers = self._lanes.take_followers() if self._lanes is not None else set()
        forming = {id(delivery) for delivery in self._forming}
        parked = {id(delivery) for _, delivery in self._parked}
        for _, delivery in self._parked:
            self._endings.pop(delivery._received.handle, None)
        self._parked = []
        not_admitted = followers | parked | {id(delivery) for delivery in (*self._held, *self._next)}
        self._forming, self._held, self._next = [], [], []
        for handle, delivery in list(self._inflight.items()):
            if id(delivery) in kept:
                continue
            unstarted = self._waiting.pop(handle, None) is delivery
            if unstarted or id(delivery) in not_admitted or id(delivery) in forming:
                del self._inflight[handle]
                back.append(Release(delivery._received))
                if self._lanes is not None and id(delivery) not in not_admitted:
                    self._lanes.finished(delivery, again=True)
                self._note(delivery, "released", None)
        return back

    def _stopped(self, receiver: Receiver) -> bool:
        """One turn of stopping. True: nothing is left, or grace has ended."""
        back = self._give_back(keep=[self._alone] if self._alone is not None else ())
        if back:
            receiver.settle(back)
        self._suspects = [self._alone] if self._alone is not None else []
        over = time.monotonic() - self._deadline
        if self._inflight and over >= 0 and self._crew is not None:
            self._crew.cancel()  # tasks end now and are released uncounted; threads go on, the broker takes theirs back
        linger = 0.0 if self.settings.window else 1.0  # for cancelled tasks to say so; a pull loop has none
        if self._endings:  # copies are on their way: without their confirm the original would come again beside them
            linger = COPIES
        if self._inflight and over < linger:
            return False
        self._lose(receiver, receiver.flush(5.0))
        return True

    def _forget(self) -> None:
        """The receiver is gone: so is all it handed out. Handlers that run finish, and their verdicts meet nobody."""
        self._inflight.clear()
        self._waiting.clear()
        self._endings.clear()
        self._forming = []
        self._suspects, self._held, self._next, self._parked = [], [], [], []
        self._alone = None
        if self._lanes is not None:
            self._lanes.clear()

    # -- telling ---------------------------------------------------------------------------------------------------

    def _note(self, delivery: Delivery[Any], outcome: AttemptOutcome, error: BaseException | None) -> None:
        counts = self.counts
        if outcome == "done":
            counts.done += 1
        elif outcome == "retry":
            counts.retried += 1
        elif outcome == "dead":
            counts.dead += 1
        elif outcome == "released":
            counts.released += 1
        else:
            counts.failed += 1
        if self._observe is not None:
            self._trace(delivery, outcome, error)

    def _trace(self, delivery: Delivery[Any], outcome: AttemptOutcome, error: BaseException | None) -> None:
        if self._observe is not None:
            self._observe(
                Attempt(delivery.id, self.destination.name, self.group, delivery.attempt, self._now(), outcome, error)
            )

    def _where_from(self, delivery: Delivery[Any]) -> dict[str, Any]:
        return {"source": self.settings.name, "message_id": delivery.id, "attempt": delivery.attempt}


def later(received: Received, after: float, attempt: int | None, since: float | None, now: float) -> Outgoing:
    """A copy that takes the place of a message which is to be handed out again; it dies of its ttl when that would have."""
    envelope = received.envelope
    envelope = msgspec.structs.replace(
        envelope,
        attempt=received.attempt if attempt is None else attempt,
        since=(received.since or envelope.since) if since is None else since,
    )
    ttl = None if received.expires_at is None else max(0.0, received.expires_at - now - after)
    return Outgoing(
        received.address, received.id, received.body, received.key, received.headers, envelope,
        delay=after, ttl=ttl, priority=received.priority,
    )  # fmt: skip


def needs(settings: Settings, can: Any, known: Sequence[str]) -> None:
    """`CapabilityMissing` when the backend cannot do what this consumer asks for."""
    missing = []
    if settings.ordered and not can.order_by_key:
        missing.append('order="key"')
    if settings.promise == "exactly_once" and not can.atomic:
        missing.append('promise="exactly_once"')
    if settings.declaration.priorities > can.priorities:
        missing.append(f"priorities={settings.declaration.priorities}")
    if settings.live and not can.broadcast:
        missing.append("broadcast")
    retries = settings.retry.attempts != 1 and not settings.live and settings.promise != "at_most_once"
    if retries and not settings.ordered:
        longest = max(can.release, can.delay)
        if not longest:
            missing.append("retry")
        elif settings.retry.backoff.cap > longest:
            missing.append(f"a back-off of {settings.retry.backoff.cap:g} s (at most {longest:g} s)")
    if settings.declaration.start == "earliest" and not can.replay:
        missing.append('start="earliest"')
    if missing:
        raise CapabilityMissing(
            f"{settings.name}: {can.name} cannot do {', '.join(missing)}; run `mqkit capabilities` to see which of "
            f"{', '.join(known)} can"
        )
