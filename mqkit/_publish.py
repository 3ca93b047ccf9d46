"""The publish pump: one thread that hands whatever has queued up to the broker and reports each message's outcome."""

from __future__ import annotations

import logging
import operator
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

from mqkit._chance import chance
from mqkit._signal import Signal
from mqkit._spill import Spill
from mqkit._ticket import Ticket, claim
from mqkit._topology import Topology
from mqkit._unconfirmed import Unconfirmed, raise_undelivered
from mqkit.backends.base import Backend, Outgoing, Publisher
from mqkit.errors import (
    BlockingCall,
    BufferFull,
    Closed,
    ConfigError,
    Denied,
    Lost,
    MqkitError,
    NotFound,
    PublishFailed,
    PublishUnknown,
    StoreDamaged,
    TimedOut,
    Unavailable,
)

log = logging.getLogger("mqkit")

Overflow = Literal["block", "reject", "drop_oldest", "drop_newest", "spill"]
OVERFLOWS: tuple[Overflow, ...] = ("block", "reject", "drop_oldest", "drop_newest", "spill")
GIVE_UP = 1.0  # longest time close() waits for its thread to let go of what is not answered
BLOCK = 30.0  # longest time publish_soon waits for room
GROUP = 100  # with group commit: so many are sent although a batch is under way
LINGER = 0.00005  # ... and so many seconds those just answered have to come back and share the next commit
RECONNECT = (0.1, 5.0)  # first and longest wait between two attempts to connect
REFUSED = 1.0  # the same, where nothing changes unless somebody corrects the settings

_address = operator.attrgetter("address")


class PublishPump:
    """
    Owns the one `Publisher` of a bus.

    Callers append tickets; the thread takes them in order, at most a window at a time. Copies that a consume pump sends
    go past the buffer's limit: if they waited for room, a full buffer would stop the consumers that could drain it.
    """

    def __init__(self, backend: Backend, topology: Topology, *, buffer: int, overflow: Overflow, name: str) -> None:
        self._backend = backend
        self._topology = topology
        self._buffer = buffer
        self._overflow = overflow
        # What is with the broker cannot be dropped: half of the buffer stays here, for newer messages to take its place.
        most = backend.capabilities.max_inflight
        self._window = min(most, max(1, buffer // 2)) if overflow == "drop_oldest" else most
        self._queue: deque[Ticket] = deque()
        self._head = threading.RLock()  # over the left end of the queue, and the spill; appending needs none
        self._spill = Spill() if overflow == "spill" else None
        self._batch: Sequence[Ticket] = ()  # being submitted
        self._inflight = 0  # taken from the queue and not answered
        self._again: list[Ticket] = []  # of these, what waits for its lost destination to be declared again
        self._grouped = backend.capabilities.group_commit
        self._unconfirmed = Unconfirmed()  # of publish_soon: what the buffer holds, and flush waits for
        self._armed = False
        self._publisher: Publisher | None = None
        self._closing = False  # nothing new is accepted
        self._giving_up = False  # and nothing more is sent
        self._arrived = Signal()  # wakes the thread while it has no publisher to wake
        self._connected_once = threading.Event()
        self._state: str | None = "not connected yet"  # why nothing can be published now; None: all is well
        self._fatal: MqkitError | None = None
        self._buffered = self._unconfirmed.tickets
        self._on_resolved = self._unconfirmed.resolved  # bound once, not per message
        self._thread = threading.Thread(target=self._run, name=f"mqkit-publish-{name}", daemon=True)
        self._thread.start()
        self.ident = self._thread.ident  # of the thread that also runs done-callbacks: they cannot wait for it

    # -- callers ---------------------------------------------------------------------------------------------------

    def send(self, message: Outgoing) -> Ticket:
        """Queue one message, whatever the buffer holds; for callers that wait for it and for copies of consumers."""
        ticket = Ticket(message)
        message.token = ticket
        self._queue.append(ticket)
        if self._closing:
            self._refuse(ticket)
        if not self._armed:
            self._notify()
        return ticket

    def send_many(self, messages: Iterable[Outgoing]) -> list[Ticket]:
        tickets = []
        for message in messages:
            ticket = Ticket(message)
            message.token = ticket
            tickets.append(ticket)
        self._queue.extend(tickets)
        if self._closing:
            self._refuse_many(tickets)
        if not self._armed:
            self._notify()
        return tickets

    def send_soon(self, message: Outgoing, *, on_loop: bool) -> Ticket:
        """
        Queue one message under the buffer's policy.

        Raises:
            BufferFull: There was no room; with overflow="block" none for 30 s.
            BlockingCall: It would have to wait for room, and must not on this thread.
        """
        if self._spill is not None:
            return self._send_or_spill(message, self._spill)
        if len(self._buffered) >= self._buffer:
            dropped = self._overflowed(message, on_loop)
            if dropped is not None:
                return dropped
        ticket = Ticket(message)
        message.token = ticket
        ticket.on_resolved = self._on_resolved
        self._buffered.add(ticket)
        self._queue.append(ticket)
        if self._closing:
            self._refuse(ticket)
        if not self._armed:
            self._notify()
        return ticket

    def flush(self, timeout: float) -> None:
        """Wait for every `publish_soon` so far; raise what failed since the last flush."""
        late = self._unconfirmed.wait(timeout)
        if late:
            raise TimedOut(
                f"{len(late)} messages are not confirmed after {timeout:g} s; {self.trouble() or 'still sending'}"
            )
        self._unconfirmed.raise_failures()

    def wait_connected(self, timeout: float) -> None:
        """Raises why not, when there is no connection within the timeout."""
        deadline = time.monotonic() + timeout
        while not self._connected_once.wait(min(0.05, max(0.0, deadline - time.monotonic()))):
            error = self._fatal
            if error is not None:
                raise error
            if time.monotonic() >= deadline:
                raise Unavailable(f"no connection within {timeout:g} s: {self._state}")

    def trouble(self) -> str | None:
        """Why nothing can be published now; None while it can."""
        publisher = self._publisher
        if publisher is not None and publisher.blocked:
            return publisher.blocked
        return self._state

    def close(self, timeout: float) -> None:
        """
        Send what is queued, then end the thread. What is not answered in time is given up: not sent later, and where the
        broker has it already, unknown.

        Raises:
            TimedOut: Accepted publishes are undelivered; the text has their number.
            PublishFailed: Everything was answered, and some of it failed since the last flush.
        """
        deadline = time.monotonic() + timeout
        self._unconfirmed.wait(timeout)
        self._closing = True
        self._unconfirmed.tell()
        late = list(self._buffered)
        self._wake()
        self._arrived.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        why = self.trouble() or "the broker did not confirm them"
        if self._thread.is_alive():
            self._giving_up = True
            self._fail_queued(_unsent())
            self._wake()
            self._arrived.set()
            self._thread.join(GIVE_UP)
        raise_undelivered(late, f"after {timeout:g} s: {why}", given_up=self._giving_up)
        self._unconfirmed.raise_failures()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def runs_here(self) -> bool:
        """Is the calling thread its own? By its ident alone it may be one that came after that had ended."""
        return threading.current_thread() is self._thread

    @property
    def pending(self) -> bool:
        """Is anything queued or unanswered?"""
        with self._head:
            return bool(self._queue or self._inflight or (self._spill is not None and self._spill.count))

    def after_fork(self) -> None:
        """In a forked child, where the thread is not: whoever holds a future of the parent gets an answer."""
        self._closing = True
        error = Closed("this publish belongs to the parent of this forked process")
        for ticket in [*self._queue, *self._buffered]:
            ticket.orphan(error)

    def _notify(self) -> None:
        self._armed = True
        self._wake()

    def _wake(self) -> None:
        publisher = self._publisher
        if publisher is not None:
            publisher.wake()
        else:
            self._arrived.set()

    def _refuse(self, ticket: Ticket) -> None:
        """
        The bus is closing, which is looked at after queueing: seen before, the thread may have looked for the last time.

        Raises:
            Closed: It will not be sent. Where the thread was first, it answers.
        """
        if ticket.cancel():
            raise _closed()

    def _refuse_many(self, tickets: Sequence[Ticket]) -> None:
        """As `_refuse`; where the thread was first for some of them, the others are answered with `Closed`."""
        withdrawn = claim(tickets)
        if len(withdrawn) == len(tickets):
            raise _closed()
        self._resolve(withdrawn, _unsent())

    # -- the buffer ------------------------------------------------------------------------------------------------

    def _overflowed(self, message: Outgoing, on_loop: bool) -> Ticket | None:
        """What the policy does with a message for which there is no room. None: room was made, queue it."""
        if self._overflow == "block":
            self._wait_for_room(message, on_loop)
            return None
        full = f"{self._buffer} messages are buffered (overflow={self._overflow!r})"
        if self._overflow == "drop_oldest":
            self._drop_oldest(BufferFull(f"message dropped for a newer one: {full}"))
            return None
        error = BufferFull(f"message {message.id} not accepted: {full}")
        if self._overflow == "reject":
            raise error
        ticket = Ticket(message)
        ticket.on_resolved = self._on_resolved
        ticket.resolve(error)
        return ticket

    def _wait_for_room(self, message: Outgoing, on_loop: bool) -> None:
        full = f"{self._buffer} messages are buffered"
        if on_loop:
            raise BlockingCall(f"publish_soon would block for room: {full}; await bus.aio.publish_soon(...) instead")
        if self.runs_here:
            raise BlockingCall(f"publish_soon in a done-callback would wait for its own thread to make room: {full}")
        if not self._unconfirmed.wait_until(lambda: len(self._buffered) < self._buffer or self._closing, BLOCK):
            raise BufferFull(f"message {message.id} refused: {full} for {BLOCK:g} s; {self.trouble() or ''}")

    def _drop_oldest(self, error: BufferFull) -> None:
        """Give up the oldest message of `publish_soon` that is not with the broker; what others wait for stays."""
        passed: list[Ticket] = []
        dropped: list[Ticket] = []
        with self._head:
            while self._queue and not dropped:
                ticket = self._queue.popleft()
                if ticket.on_resolved is None:
                    passed.append(ticket)
                else:
                    dropped = claim([ticket])
            self._queue.extendleft(reversed(passed))
        self._resolve(dropped, error)

    def _send_or_spill(self, message: Outgoing, spill: Spill) -> Ticket:
        ticket = Ticket(message)
        ticket.on_resolved = self._on_resolved
        with self._head, spill.alone(message):
            if self._closing:
                raise _closed()
            if not spill.count and len(self._buffered) < self._buffer:
                message.token = ticket
                self._queue.append(ticket)
            else:
                try:
                    spill.put(ticket, message)
                except OSError as exc:
                    raise BufferFull(
                        f"message {message.id} refused: {len(self._buffered)} messages are buffered and the temporary "
                        f"file for more cannot grow: {exc}"
                    ) from exc
            self._buffered.add(ticket)
        if not self._armed:
            self._notify()
        return ticket

    def _resolve(self, tickets: Iterable[Ticket], error: MqkitError) -> None:
        """Answer what no publisher has."""
        for ticket in tickets:
            ticket.resolve(error)
        if self._unconfirmed.watchers:
            self._unconfirmed.tell()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = 0.0
        while not self._finished():
            self._arrived.wait(pause if self._fatal is not None else pause * chance())
            began = time.monotonic()
            if not self._connected() and self._closing:
                break
            if self._fatal is not None:
                pause = REFUSED
            elif time.monotonic() - began > RECONNECT[1]:
                pause = 0.0  # it worked for a while
            else:
                pause = min(RECONNECT[1], max(RECONNECT[0], pause * 2))
        self._fail_queued(_unsent())

    def _finished(self) -> bool:
        return self._closing and (self._giving_up or not self.pending)

    def _connected(self) -> bool:
        """One connection, from its making to its end. False: there was none."""
        try:
            publisher = self._backend.publisher()
        except Exception as exc:  # noqa: BLE001  whatever a driver raises, the next attempt may succeed
            self._cannot_connect(exc)
            return False
        self._publisher, self._state, self._fatal = publisher, None, None
        self._connected_once.set()
        try:
            self._serve(publisher)
            if self._inflight:
                self._abandon(publisher, "the bus was closed")
        except Lost as exc:
            self._state = str(exc)
            log.warning("publisher.lost", extra={"error": str(exc)})
            self._abandon(publisher, str(exc))
            self._topology.forget()
        except Exception as exc:
            self._state = f"{type(exc).__name__}: {exc}"
            log.exception("publisher.failed")
            self._abandon(publisher, self._state)
        finally:
            self._publisher = None
            try:
                publisher.close()
            except Exception:
                log.exception("publisher.close_failed")
        return True

    def _serve(self, publisher: Publisher) -> None:
        """Until the bus closes, or the publisher fails."""
        most = self._backend.capabilities.max_batch
        while True:
            self._armed = False
            if self._finished():
                return
            if self._has_window() and (batch := self._take(min(most, self._window - self._inflight))):
                self._batch = batch
                self._submit(publisher, batch)
                self._batch = ()
            if self._has_window():
                patience = 0.0 if self._queue else 1.0
            else:
                # Nothing can be sent before an outcome comes, and that wakes us: callers need not.
                self._armed, patience = True, 1.0
            outcomes = publisher.collect(patience)
            if outcomes:
                self._answer(outcomes)
                if self._grouped and len(outcomes) > 1 and len(self._queue) < GROUP:
                    time.sleep(LINGER)

    def _has_window(self) -> bool:
        if self._again:
            return False  # what comes later waits behind what is sent again
        if self._grouped and self._inflight and len(self._queue) < GROUP:
            return False  # it would only wait for the batch under way, and may as well grow meanwhile
        return self._inflight < self._window

    def _take(self, most: int) -> list[Ticket]:
        queue, spill = self._queue, self._spill
        with self._head:
            if spill is not None and len(queue) < most:
                queue.extend(spill.take(most))
            batch = claim([queue.popleft() for _ in range(min(most, len(queue)))])
            self._inflight += len(batch)
        return batch

    def _submit(self, publisher: Publisher, batch: Sequence[Ticket]) -> None:
        messages = [ticket.outgoing for ticket in batch if ticket.outgoing is not None]
        if len(messages) < len(batch):
            error = PublishFailed("not sent: the temporary file of overflow='spill' cannot be read")
            self._answer([(ticket, error) for ticket in batch if ticket.outgoing is None])
        if self._topology.missing(set(map(_address, messages))):
            messages = self._declared(messages)
        if messages:
            publisher.submit(messages)

    def _declared(self, messages: list[Outgoing]) -> list[Outgoing]:
        """Declare what these need; the ones whose destination cannot be declared are answered and left out."""
        ready = []
        refused: list[tuple[Ticket, MqkitError]] = []
        failed: dict[object, MqkitError] = {}
        for message in messages:
            address = message.address
            if address not in failed:
                try:
                    self._topology.ensure(self._backend, [address])
                except Exception as exc:  # noqa: BLE001  told to whoever publishes there; the others go on
                    failed[address] = _not_sent(exc)
            if address in failed:
                message.token.retried = True
                refused.append((message.token, failed[address]))
            else:
                ready.append(message)
        self._answer(refused)
        return ready

    def _answer(self, outcomes: Sequence[tuple[Ticket, MqkitError | None]]) -> None:
        self._inflight -= len(outcomes)
        for ticket, error in outcomes:
            if error is not None and isinstance(error, NotFound) and not ticket.retried:
                ticket.retried = True
                self._again.append(ticket)
            else:
                ticket.resolve(error)
        if self._again and not self._inflight:
            self._send_again()
        if self._unconfirmed.watchers:
            self._unconfirmed.tell()

    def _send_again(self) -> None:
        """
        The broker lost destinations that were declared before: their messages go back to the front, in their order. Once
        per message; the second time it is an error. Nothing is under way then, so none of them can pass another.
        """
        again, self._again = self._again, []
        self._topology.forget({ticket.outgoing.address for ticket in again if ticket.outgoing is not None})
        for ticket in again:
            ticket.requeue()
        with self._head:
            self._queue.extendleft(reversed(again))

    def _abandon(self, publisher: Publisher, why: str) -> None:
        """Answer whatever the publisher was given: nothing more will be heard of it."""
        try:
            outcomes = list(publisher.abandon())
        except Exception:
            log.exception("publisher.abandon_failed")
            outcomes = []
        told = {ticket for ticket, _ in outcomes}
        for ticket in self._batch:  # submitting it failed half-way: what a publisher says of the rest is its own affair
            if ticket.claimed and ticket not in told:
                outcomes.append(
                    (ticket, PublishUnknown(f"sent or not, nobody knows: {why}; publish again with the same id"))
                )
        self._batch = ()
        self._inflight = len(outcomes)
        self._answer(outcomes)

    def _cannot_connect(self, error: Exception) -> None:
        self._state = str(error) if isinstance(error, MqkitError) else f"{type(error).__name__}: {error}"
        log.warning("publisher.cannot_connect", extra={"error": self._state})
        if isinstance(error, MqkitError) and not error.retryable:
            self._fatal = error
            self._fail_queued(error)

    def _fail_queued(self, error: MqkitError) -> None:
        waiting: list[Ticket] = []
        with self._head:
            while self._queue:
                waiting.append(self._queue.popleft())
            if self._spill is not None:
                waiting += self._spill.clear()
        self._resolve(claim(waiting), error)


def _closed() -> Closed:
    return Closed("the bus is closed; open() it again before publishing")


def _unsent() -> Closed:
    return Closed("the bus was closed before the message was sent")


def _not_sent(error: Exception) -> MqkitError:
    if isinstance(error, (ConfigError, Denied, NotFound, PublishFailed, StoreDamaged)):
        return error
    wrapped = PublishFailed(f"not sent: {error if isinstance(error, MqkitError) else repr(error)}")
    wrapped.__cause__ = error
    wrapped.retryable = isinstance(error, MqkitError) and error.retryable
    return wrapped
