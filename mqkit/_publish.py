"""The publish pump: one thread that hands whatever has queued up to the broker and reports each message's outcome."""

from __future__ import annotations

import logging
import operator
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import wait
from typing import Literal

from mqkit._spill import Spill
from mqkit._ticket import Ticket, claim
from mqkit._topology import Topology
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
WINDOW = 1000  # messages with the broker and not yet answered
BLOCK = 30.0  # longest time publish_soon waits for room
GROUP = 100  # with group commit: so many are sent although a batch is under way
LINGER = 0.00005  # ... and so many seconds those just answered have to come back and share the next commit
RECONNECT = (0.1, 5.0)  # first and longest wait between two attempts to connect

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
        self._queue: deque[Ticket] = deque()
        self._spill = Spill() if overflow == "spill" else None
        self._inflight = 0
        self._grouped = backend.capabilities.group_commit
        self._room = threading.Condition()
        self._waiting_for_room = 0
        self._armed = False
        self._publisher: Publisher | None = None
        self._closing = False
        self._arrived = threading.Event()  # wakes the thread while it has no publisher to wake
        self._connected_once = threading.Event()
        self._state: str | None = "not connected yet"  # why nothing can be published now; None: all is well
        self._fatal: MqkitError | None = None
        self._on_resolved = self._resolved  # bound once, not per message
        self._failures: list[BaseException] = []  # of publish_soon, since the last flush
        self._undelivered: set[Ticket] = set()  # of publish_soon: flush waits for these
        self._thread = threading.Thread(target=self._run, name=f"mqkit-publish-{name}", daemon=True)
        self._thread.start()

    # -- callers ---------------------------------------------------------------------------------------------------

    def send(self, message: Outgoing) -> Ticket:
        """Queue one message, whatever the buffer holds; for callers that wait for it and for copies of consumers."""
        ticket = Ticket(message)
        message.token = ticket
        self._append(ticket)
        return ticket

    def send_many(self, messages: Iterable[Outgoing]) -> list[Ticket]:
        tickets = []
        for message in messages:
            ticket = Ticket(message)
            message.token = ticket
            tickets.append(ticket)
        if self._closing:
            raise Closed("the bus is closed; open() it again before publishing")
        self._queue.extend(tickets)
        self._notify()
        return tickets

    def send_soon(self, message: Outgoing, *, on_loop: bool) -> Ticket:
        """Queue one message under the buffer's policy. May block for room with overflow="block", at most 30 s."""
        if len(self._queue) + self._inflight >= self._buffer:
            dropped = self._overflowed(message, on_loop)
            if dropped is not None:
                return dropped
        elif self._spill is not None and self._spill.count:
            return self._spilled(message)
        ticket = Ticket(message)
        message.token = ticket
        self._undelivered.add(ticket)
        ticket.on_resolved = self._on_resolved
        self._append(ticket)
        return ticket

    def has_room(self) -> bool:
        return self._overflow != "block" or len(self._queue) + self._inflight < self._buffer

    def wait_for_room(self, timeout: float) -> bool:
        """Wait until the buffer has room. False: it stayed full."""
        deadline = time.monotonic() + timeout
        with self._room:
            self._waiting_for_room += 1
            try:
                while len(self._queue) + self._inflight >= self._buffer:
                    left = deadline - time.monotonic()
                    if left <= 0 or self._closing:
                        return False
                    self._room.wait(left)
            finally:
                self._waiting_for_room -= 1
        return True

    def flush(self, timeout: float) -> None:
        """Wait for every `publish_soon` so far; raise what failed since the last flush."""
        _, late = wait(list(self._undelivered), timeout)
        if late:
            raise TimedOut(
                f"{len(late)} messages are not confirmed after {timeout:g} s; {self.trouble() or 'still sending'}"
            )
        self._raise_failures()

    def wait_connected(self, timeout: float) -> None:
        """Raises why not, when there is no connection within the timeout."""
        deadline = time.monotonic() + timeout
        while not self._connected_once.wait(min(0.05, max(0.0, deadline - time.monotonic()))):
            error = self._fatal
            if error is not None:
                raise error
            if time.monotonic() >= deadline:
                raise Unavailable(f"no connection within {timeout:g} s: {self._state}")

    def _raise_failures(self) -> None:
        """What `publish_soon` could not send since the last time somebody asked."""
        failures, self._failures = self._failures, []
        if len(failures) == 1:
            raise failures[0]
        if failures:
            kinds = ", ".join(sorted({type(error).__name__ for error in failures}))
            summary = PublishFailed(f"{len(failures)} messages were not confirmed ({kinds}); first: {failures[0]}")
            summary.retryable = False
            raise summary from ExceptionGroup("publish_soon", [e for e in failures if isinstance(e, Exception)])

    def trouble(self) -> str | None:
        """Why nothing can be published now; None while it can."""
        publisher = self._publisher
        if publisher is not None and publisher.blocked:
            return publisher.blocked
        return self._state

    def close(self, timeout: float) -> None:
        """
        Send what is queued, then end the thread.

        Raises:
            TimedOut: Accepted publishes are undelivered; the text has their number. They are not sent later.
            PublishFailed: Everything was answered, and some of it failed since the last flush.
        """
        deadline = time.monotonic() + timeout
        _, late = wait(list(self._undelivered), timeout)
        with self._room:
            self._closing = True
            self._room.notify_all()
        publisher = self._publisher
        if publisher is not None:
            publisher.wake()
        self._arrived.set()
        self._thread.join(max(1.0, deadline - time.monotonic()))
        left = [ticket for ticket in late if not ticket.done()]
        lost = self._fail_queued(Closed("the bus was closed before the message was sent"))
        if self._spill is not None:
            lost += self._spill.count
            self._spill.close()
        if left or lost:
            raise TimedOut(
                f"closed with {max(len(left), lost)} accepted messages undelivered after {timeout:g} s: "
                f"{self._state or 'the broker did not confirm them'}"
            )
        self._raise_failures()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def after_fork(self) -> None:
        """In a forked child, where the thread is not: whoever holds a future of the parent gets an answer."""
        self._closing = True
        error = Closed("this publish belongs to the parent of this forked process")
        for ticket in [*self._queue, *self._undelivered]:
            ticket.orphan(error)

    # -- the buffer ------------------------------------------------------------------------------------------------

    def _append(self, ticket: Ticket) -> None:
        if self._closing:
            raise Closed("the bus is closed; open() it again before publishing")
        self._queue.append(ticket)
        self._notify()

    def _notify(self) -> None:
        if not self._armed:
            self._armed = True
            publisher = self._publisher
            if publisher is not None:
                publisher.wake()
            else:
                self._arrived.set()

    def _overflowed(self, message: Outgoing, on_loop: bool) -> Ticket | None:
        """What the policy does with a message for which there is no room. None: room was made, queue it."""
        if self._overflow == "block":
            if on_loop:
                raise BlockingCall(
                    f"publish_soon would block for room: {self._buffer} messages are buffered; "
                    "await bus.aio.publish_soon(...) instead"
                )
            if not self.wait_for_room(BLOCK):
                raise BufferFull(
                    f"message {message.id} refused: {self._buffer} messages are buffered for {BLOCK:g} s; {self.trouble() or ''}"
                )
            return None
        if self._overflow == "spill":
            return self._spilled(message)
        full = f"{self._buffer} messages are buffered (overflow={self._overflow!r})"
        if self._overflow == "drop_oldest":
            while self._queue:
                oldest = self._queue.popleft()
                if claim([oldest]):
                    oldest.resolve(BufferFull(f"message dropped for a newer one: {full}"))
                    return None
            return None
        error = BufferFull(f"message {message.id} not accepted: {full}")
        if self._overflow == "reject":
            raise error
        ticket = Ticket(message)
        ticket.on_resolved = self._on_resolved
        self._undelivered.add(ticket)
        claim([ticket])
        ticket.resolve(error)
        return ticket

    def _spilled(self, message: Outgoing) -> Ticket:
        assert self._spill is not None
        if self._closing:
            raise Closed("the bus is closed; open() it again before publishing")
        ticket = Ticket(message)
        ticket.on_resolved = self._on_resolved
        self._undelivered.add(ticket)
        self._spill.put(ticket, message)
        self._notify()
        return ticket

    def _resolved(self, ticket: Ticket, error: BaseException | None) -> None:
        self._undelivered.discard(ticket)
        if error is not None and len(self._failures) < 1000:
            self._failures.append(error)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_for = RECONNECT[0]
        while not (self._closing and not self.pending):
            try:
                publisher = self._backend.publisher()
            except MqkitError as exc:
                self._cannot_connect(exc)
                if self._closing:
                    break
                self._arrived.wait(wait_for * random.random() if exc.retryable else 1.0)
                self._arrived.clear()
                wait_for = min(RECONNECT[1], wait_for * 2)
                continue
            wait_for = RECONNECT[0]
            self._publisher, self._state, self._fatal = publisher, None, None
            self._connected_once.set()
            try:
                self._serve(publisher)
            except Lost as exc:
                self._state = str(exc)
                log.warning("publisher.lost", extra={"error": str(exc)})
                self._answer(publisher.abandon())
                self._topology.forget()
            except Exception as exc:
                self._state = f"{type(exc).__name__}: {exc}"
                log.exception("publisher.failed")
                self._answer(publisher.abandon())
            finally:
                self._publisher = None
                publisher.close()
        self._fail_queued(Closed("the bus was closed before the message was sent"))

    @property
    def pending(self) -> bool:
        """Is anything queued or unanswered?"""
        return bool(self._queue or self._inflight or (self._spill is not None and self._spill.count))

    def _serve(self, publisher: Publisher) -> None:
        room = min(WINDOW, self._backend.capabilities.max_batch)
        while True:
            self._armed = False
            if self._has_window() and (batch := self._take(min(room, WINDOW - self._inflight))):
                self._submit(publisher, batch)
            if self._closing and not self.pending:
                return
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
        if self._grouped and self._inflight and len(self._queue) < GROUP:
            return False  # it would only wait for the batch under way, and may as well grow meanwhile
        return self._inflight < WINDOW

    def _take(self, most: int) -> list[Ticket]:
        queue = self._queue
        if self._spill is not None and self._spill.count and len(queue) < most:
            queue.extend(self._spill.take(most))
        tickets: list[Ticket] = []
        while queue and len(tickets) < most:
            try:
                tickets.append(queue.popleft())
            except IndexError:  # a caller dropped the oldest meanwhile
                break
        return claim(tickets)

    def _submit(self, publisher: Publisher, batch: list[Ticket]) -> None:
        messages = [ticket.outgoing for ticket in batch if ticket.outgoing is not None]
        if self._topology.missing(set(map(_address, messages))):
            messages = self._declared(messages)
        if messages:
            self._inflight += len(messages)
            publisher.submit(messages)

    def _declared(self, messages: list[Outgoing]) -> list[Outgoing]:
        """Declare what these need; the ones whose destination cannot be declared are answered and left out."""
        ready = []
        failed: dict[object, MqkitError] = {}
        for message in messages:
            address = message.address
            if address not in failed:
                try:
                    self._topology.ensure(self._backend, [address])
                except MqkitError as exc:
                    failed[address] = exc
            if address in failed:
                message.token.resolve(_not_sent(failed[address]))
            else:
                ready.append(message)
        return ready

    def _answer(self, outcomes: Sequence[tuple[Ticket, MqkitError | None]]) -> None:
        self._inflight -= len(outcomes)
        for ticket, error in outcomes:
            if error is not None and isinstance(error, NotFound) and ticket.outgoing is not None:
                self._declare_again(ticket, error)
            else:
                ticket.resolve(error)
        if self._waiting_for_room:
            with self._room:
                self._room.notify_all()

    def _declare_again(self, ticket: Ticket, error: NotFound) -> None:
        """The broker lost a destination that was declared before. Once per message; the second time it is an error."""
        message = ticket.outgoing
        if message is None or ticket.retried:
            ticket.resolve(error)
            return
        ticket.retried = True
        self._topology.forget([message.address])
        ticket.requeue()
        self._queue.appendleft(ticket)

    def _cannot_connect(self, error: MqkitError) -> None:
        self._state = str(error)
        log.warning("publisher.cannot_connect", extra={"error": str(error)})
        if not error.retryable:
            self._fatal = error
            self._fail_queued(error)

    def _fail_queued(self, error: MqkitError) -> int:
        count = 0
        while self._queue:
            try:
                ticket = self._queue.popleft()
            except IndexError:
                break
            if claim([ticket]):
                ticket.resolve(error)
                count += 1
        return count


def wait_for_ticket(ticket: Ticket, timeout: float, why: Callable[[], str | None]) -> str:
    """
    The message id, once the broker is responsible.

    Raises:
        TimedOut: Withdrawn in time, certainly not sent.
        PublishUnknown: It was with the broker already; publish again with the same id.
        PublishFailed, NotFound, Denied, ...: What the broker answered.
    """
    message = ticket.outgoing
    if ticket.wait(timeout):
        return ticket.result(0)
    return expire(ticket, message, timeout, why())


def expire(ticket: Ticket, message: Outgoing | None, timeout: float, trouble: str | None) -> str:
    """A waiter's time is over: withdraw, or say that nobody knows. The id, if it was confirmed at the last moment."""
    shown = message.id if message is not None else "?"
    because = f": {trouble}" if trouble else ""
    if ticket.cancel():
        raise TimedOut(f"message {shown} was withdrawn after {timeout:g} s, not sent{because}") from None
    if ticket.done():
        return ticket.result(0)
    raise PublishUnknown(
        f"message {shown} was handed to the broker and not confirmed within {timeout:g} s{because}; "
        f"publish again with id={shown!r}"
    ) from None


def _not_sent(error: MqkitError) -> MqkitError:
    if isinstance(error, (ConfigError, Denied, NotFound, PublishFailed, StoreDamaged)):
        return error
    wrapped = PublishFailed(f"not sent: {error}")
    wrapped.__cause__ = error
    wrapped.retryable = error.retryable
    return wrapped
