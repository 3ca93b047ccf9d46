"""Endings: how deliveries end. From what became of a handler to settlements, once the copies that go with them are safe."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from mqkit._call import Interrupted
from mqkit._chance import chance
from mqkit._gate import Skipped
from mqkit._publish import PublishPump
from mqkit._settings import Settings
from mqkit._text import text_of
from mqkit._topology import Topology
from mqkit._trace import AttemptOutcome, Tally
from mqkit.backends.base import Backend, Done, Outgoing, Received, Release, Settlement
from mqkit.destinations import Destination
from mqkit.envelope import Dead
from mqkit.errors import MqkitError, Unencodable
from mqkit.message import Delivery
from mqkit.patterns.retry import judge
from mqkit.verdicts import Ack, Reject, RetryLater, Verdict

log = logging.getLogger("mqkit")

COPY_RETRY = 1.0  # seconds a delivery waits when the broker would not take its copies just now
REFUSED_RETRY = 60.0  # and where it refuses them for what they are, which only its owner can change
REMEMBERED = 10_000  # deliveries, more than are settled at once
REASON_BYTES = 2000
SHORT_REASON = 100  # bytes: of a dead letter that was refused

# KeyboardInterrupt is the signal on the thread of the caller's loop, GeneratorExit a loop that is closed under a task.
INTERRUPTIONS = (Interrupted, KeyboardInterrupt, GeneratorExit)


class Sender(Protocol):
    """The publishing side of a bus, as a consumer needs it."""

    @property
    def publish_pump(self) -> PublishPump: ...

    def prepare(
        self, to: Destination[Any], payload: Any, options: Mapping[str, Any], *, id: str = "", staged: bool = False
    ) -> Outgoing: ...


class Confirmed(BaseException):
    """The copies that go elsewhere are there, or failed with `error`."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Postponed(BaseException):
    """Its copies were refused: it is to come again after so many seconds."""

    def __init__(self, after: float) -> None:
        self.after = after


class Ending(msgspec.Struct, frozen=True):
    """
    How a delivery ends once its copies are safe. A copy goes through a bus of its own, or (None) through this one.

    `sent` are those on their way, which are not repeated once they are confirmed.
    """

    copies: Sequence[tuple[Any, Outgoing]]
    outcome: AttemptOutcome
    error: BaseException | None
    sent: Sequence[tuple[Any, Outgoing]] = ()


class Endings:
    """
    The endings of one consumer. Used by its thread only.

    Every method that settles returns None for "not yet": copies are on their way elsewhere, the delivery stays in hand,
    and `finish` is called with a `Confirmed` when they are answered.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        topology: Topology,
        sender: Sender,
        tally: Tally,
        *,
        finish: Callable[[Delivery[Any], BaseException | None], None],
        now: Callable[[], float],
        stopping: threading.Event,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._can = backend.capabilities
        self._topology = topology
        self._sender = sender
        self._tally = tally
        self._finish, self._now, self._stopping = finish, now, stopping
        self._early = settings.early
        self._awaited: dict[Any, Ending] = {}  # of deliveries whose copies are on their way elsewhere, by handle
        # Handles: of those done that were settled with what they staged, and of those for which a copy was to wait.
        self._paying: deque[Any] = deque(maxlen=REMEMBERED)
        self._put_off: deque[Any] = deque(maxlen=REMEMBERED)
        # What stays in hand until (monotonic) it is tried again to end it so.
        self.parked: list[tuple[float, Delivery[Any], BaseException]] = []

    def conclude(self, delivery: Delivery[Any], outcome: BaseException | None) -> Sequence[Settlement] | None:
        """How to settle anything but a plain success: with nothing where that was done before."""
        if isinstance(outcome, Skipped):
            self._tally.note(delivery, "skipped", None)
            return () if self._early else (Done(delivery._received),)
        if self._early:
            return self._gone(delivery, outcome)
        if isinstance(outcome, Confirmed):
            return self._confirmed(delivery, outcome.error)
        if outcome is None or isinstance(outcome, Ack):
            return self._complete(delivery, Ending(delivery._staged or (), "done", None))
        if isinstance(outcome, INTERRUPTIONS):
            return self._again(delivery, "released", outcome, after=0.0 if self._stopping.is_set() else COPY_RETRY)
        if isinstance(outcome, Postponed):
            return self._again(delivery, "released", None, after=0.0 if self._stopping.is_set() else outcome.after)
        return self._failed(delivery, outcome)

    def postponed(self, received: Received, error: BaseException) -> Release | None:
        """
        The same message once more later, uncounted; None where the backend cannot keep the wait.

        Args:
            error: What its copies were refused with.
        """
        if self._settings.ordered:
            return Release(received, min(_until_again(error), self._can.hold))
        if self._can.release >= COPY_RETRY:
            return Release(received, min(_until_again(error), self._can.release))
        return None

    def put_off(self, delivery: Delivery[Any], error: BaseException) -> None:
        """
        A copy waits for it; where that is refused too it stays in hand, for it would need a copy to wait elsewhere.

        Args:
            error: What its copies were refused with.
        """
        handle, postponed = delivery._received.handle, Postponed(_until_again(error))
        if handle in self._put_off:
            self.parked.append((time.monotonic() + postponed.after, delivery, postponed))
        else:
            self._put_off.append(handle)
            self._finish(delivery, postponed)

    def accuse(self, received: Received, error: BaseException) -> bool:
        """
        Was it done, and what its handler staged refused for what it is? That is a failed attempt. Not with order, where the
        next of its key may have begun: it comes again in its place.
        """
        if self._settings.ordered or not isinstance(error, Unencodable) or received.handle not in self._paying:
            return False
        self._paying.remove(received.handle)  # the next copy that is refused is none of its handler's
        return True

    def forget(self, handle: Any) -> None:
        """A delivery was revoked."""
        self._awaited.pop(handle, None)

    # -- waiting for the broker to take copies ---------------------------------------------------------------------

    def try_again(self) -> None:
        now = time.monotonic()
        due = [entry for entry in self.parked if entry[0] <= now]
        self.parked = [entry for entry in self.parked if entry[0] > now]
        for _, delivery, outcome in due:
            self._finish(delivery, outcome)

    def give_up_waiting(self, keep: Sequence[Delivery[Any]]) -> list[Delivery[Any]]:
        """Those that wait, to be given back; but for `keep`."""
        kept = {id(delivery) for delivery in keep}
        waiting = [delivery for _, delivery, _ in self.parked if id(delivery) not in kept]
        self.parked = [entry for entry in self.parked if id(entry[1]) in kept]
        for delivery in waiting:
            self.forget(delivery._received.handle)
        return waiting

    @property
    def awaiting(self) -> bool:
        """Are copies on their way, or to be tried again?"""
        return bool(self._awaited)

    def clear(self) -> None:
        self._awaited.clear()
        self._paying.clear()
        self._put_off.clear()
        self.parked.clear()

    # -- deciding --------------------------------------------------------------------------------------------------

    def _gone(self, delivery: Delivery[Any], outcome: BaseException | None) -> Sequence[Settlement]:
        """It was settled before its handler: a failure is the end of it."""
        if outcome is not None:
            log.error("message.failed", extra={**self._origin(delivery), "error": failure(outcome)})
        self._tally.note(delivery, "done" if outcome is None else "failed", outcome)
        if outcome is None:  # nothing is left to settle with, so what the handler staged is simply published
            for via, message in delivery._staged or ():
                try:
                    (via or self._sender).publish_pump.send(message)
                except MqkitError:
                    log.exception("copies.lost", extra=self._origin(delivery))
        return ()

    def _failed(self, delivery: Delivery[Any], error: BaseException) -> Sequence[Settlement] | None:
        received = delivery._received
        now = self._now()
        since = received.since if received.since is not None else received.envelope.since or now
        verdict = self._judged(error, attempt=received.attempt, waited=now - since)
        raised = None if isinstance(error, Verdict) else error
        if isinstance(verdict, Reject):
            log.warning("message.rejected", extra={**self._origin(delivery), "reason": verdict.reason})
            letter = dead_letter(received, verdict.reason, raised, now)
            return self._complete(delivery, Ending(((None, letter),), "dead", raised))
        after = verdict.after if isinstance(verdict, RetryLater) else 0.0
        return self._again(delivery, "retry", raised, after=after, attempt=received.attempt + 1, since=since)

    def _judged(self, error: BaseException, *, attempt: int, waited: float) -> Verdict:
        """A verdict whatever an exception is made of: a mistake in its class must not take the consumer along."""
        try:
            return judge(self._settings.retry, error, attempt=attempt, waited=waited, chance=chance())
        except Exception as exc:
            log.exception("judgement.failed", extra={"source": self._settings.name})
            return Reject(f"{type(error).__name__}, which could not be judged: {failure(exc)}")

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
        if self._settings.ordered or in_place:
            self._tally.note(delivery, outcome, error)
            return (Release(received, min(after, self._can.hold), attempt, since),)
        copy = later(received, min(after, self._can.delay), attempt, since, self._now())
        copy.partitions = self._settings.destination.partitions
        return self._complete(delivery, Ending(((None, copy),), outcome, error))

    # -- carrying out ----------------------------------------------------------------------------------------------

    def _complete(self, delivery: Delivery[Any], ending: Ending) -> Sequence[Settlement] | None:
        """
        Settle for good, with copies: those the backend cannot take into the same transaction are sent and confirmed
        first, while the delivery stays in hand.
        """
        if elsewhere := [copy for copy in ending.copies if copy[0] is not None or not self._can.atomic]:
            here = [copy for copy in ending.copies if copy not in elsewhere]
            self._awaited[delivery._received.handle] = Ending(here, ending.outcome, ending.error, elsewhere)
            self._send(delivery, elsewhere)
            return None
        copies = [message for _, message in ending.copies]
        if copies and self._topology.missing({copy.address for copy in copies}):
            try:
                self._topology.ensure(self._backend, [copy.address for copy in copies])
            except MqkitError as exc:
                return self._copies_failed(delivery, ending, exc)
        if copies and ending.outcome == "done":
            self._paying.append(delivery._received.handle)
        self._tally.note(delivery, ending.outcome, ending.error)
        return (Done(delivery._received, copies),)

    def _send(self, delivery: Delivery[Any], elsewhere: Sequence[tuple[Any, Outgoing]]) -> None:
        """Publish copies; when the last one is answered, a verdict says so."""
        left = len(elsewhere)
        first_error: list[BaseException] = []
        lock = threading.Lock()

        def answered(error: BaseException | None) -> None:
            nonlocal left
            with lock:
                left -= 1
                if error is not None:
                    first_error.append(error)
                if left:
                    return
            self._finish(delivery, Confirmed(first_error[0] if first_error else None))

        for via, message in elsewhere:
            try:
                ticket = (via or self._sender).publish_pump.send(message)
            except MqkitError as exc:  # its bus was closed meanwhile
                answered(exc)
            else:
                ticket.add_done_callback(lambda ticket: answered(ticket.exception()))

    def _confirmed(self, delivery: Delivery[Any], error: BaseException | None) -> Sequence[Settlement] | None:
        ending = self._awaited.pop(delivery._received.handle)
        if error is not None:
            return self._copies_failed(delivery, ending, error)
        return self._complete(delivery, ending)

    def _copies_failed(
        self, delivery: Delivery[Any], ending: Ending, error: BaseException
    ) -> Sequence[Settlement] | None:
        """Copies could not be sent. Not the handler's fault if it may work later, and never the end of the message."""
        may_work_later = isinstance(error, MqkitError) and error.retryable
        if ending.outcome == "done" and not may_work_later:
            return self._failed(delivery, error)
        copies = [*ending.copies, *ending.sent]
        if ending.outcome == "dead" and isinstance(error, Unencodable):
            [(_, letter)] = copies
            if (shorter := shortened(letter)) is not None:
                log.warning("dead_letter.shortened", extra={**self._origin(delivery), "error": str(error)})
                return self._complete(delivery, Ending(((None, shorter),), ending.outcome, ending.error))
        log.warning("copies.delayed", extra={**self._origin(delivery), "error": str(error)})
        if (release := self.postponed(delivery._received, error)) is not None:
            self._tally.note(delivery, "released", error)
            return (release,)
        # To wait elsewhere it would need a copy too: it stays in hand, and only its copies are tried again.
        self._awaited[delivery._received.handle] = Ending(copies, ending.outcome, ending.error)
        self.parked.append((time.monotonic() + _until_again(error), delivery, Confirmed(None)))
        return None

    def _origin(self, delivery: Delivery[Any]) -> dict[str, Any]:
        return {"source": self._settings.name, "message_id": delivery.id, "attempt": delivery.attempt}


def _until_again(error: BaseException) -> float:
    return REFUSED_RETRY if isinstance(error, Unencodable) else COPY_RETRY


def failure(error: BaseException) -> str:
    return f"{type(error).__name__}: {text_of(error)}"


def dead_letter(received: Received, reason: str, error: BaseException | None, now: float) -> Outgoing:
    dead = Dead(
        reason=text_of(reason).encode(errors="replace")[:REASON_BYTES].decode(errors="ignore"),
        error_type=type(error).__name__ if error is not None else "",
        attempts=received.attempt,
        origin=str(received.address),
        died_at=now,
        priority=received.priority,
    )
    envelope = msgspec.structs.replace(received.envelope, attempt=1, since=0.0, dead=dead)
    return Outgoing(received.address.dead_letters, received.id, received.body, received.key, received.headers, envelope)


def shortened(letter: Outgoing) -> Outgoing | None:
    """Of a dead letter that was refused the body and what names it; None: that is all it has."""
    dead = letter.envelope.dead
    assert dead is not None
    reason = dead.reason.encode()[:SHORT_REASON].decode(errors="ignore")
    if not letter.headers and reason == dead.reason:
        return None
    envelope = msgspec.structs.replace(letter.envelope, dead=msgspec.structs.replace(dead, reason=reason))
    return Outgoing(letter.address, letter.id, letter.body, letter.key, {}, envelope)


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
