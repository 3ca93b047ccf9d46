"""The future of one publish. Cheap: a lock is made only for those somebody waits on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from typing import Any

from mqkit.backends.base import Outgoing
from mqkit.errors import PublishUnknown, TimedOut

# Claiming (pump) against withdrawing (caller whose time ran out): whoever is first decides, so a ticket withdrawn is
# certainly not sent. Taken once per batch and once per time-out, hence one lock for all. Reentrant, as the others on the
# way of a publish: its thread may be interrupted there by a signal whose handler publishes.
_claims = threading.RLock()

_DONE = (FINISHED, CANCELLED_AND_NOTIFIED)
_LATE: dict[str, Callable[[], Any]] = {"_later": threading.Condition, "_waiters": list, "_done_callbacks": list}
_SHUT = object()


class Ticket(Future[str]):
    """
    A `concurrent.futures.Future` of the message id.

    `Future.__init__` makes a Condition, which costs more than all the rest of a publish. Here it is made by the first
    who needs one, unless resolving was first and shut the door: one `setdefault` decides. Whoever has a condition of an
    unresolved ticket may count on its state not changing while he holds it, as `concurrent.futures.wait` does.
    """

    # What most tickets never change stands here, once, and is not written per publish.
    _state = PENDING
    _result: str | None = None
    _exception: BaseException | None = None
    _bell: Any = None  # a lock that resolving releases, for `wait`
    retried = False  # the destination was declared again for it
    on_resolved: Callable[[Ticket, BaseException | None], None] | None = None

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing: Outgoing | None = outgoing

    def __getattr__(self, name: str) -> Any:
        make = _LATE.get(name)
        if make is None:
            raise AttributeError(name)
        return self.__dict__.setdefault(name, make())

    @property
    def _condition(self) -> Any:  # type: ignore[override]
        # A property goes before the instance, where `Future` would look.
        door = self.__dict__.get("_door") or self.__dict__.setdefault("_door", threading.Condition())
        if door is not _SHUT:
            return door
        while self._state != FINISHED:  # which is the very next thing that happens
            time.sleep(0)
        return self._later

    def wait(self, timeout: float) -> bool:
        """By the one caller who has this ticket: is it resolved within so many seconds? A bare lock, no Condition."""
        bell = threading.Lock()
        bell.acquire()
        self._bell = bell
        # Resolving writes the state before it looks for a bell, so one of the two sees the other.
        return self._state in _DONE or bell.acquire(timeout=max(0.0, timeout))

    def outcome(self) -> str:
        """As `result` of a ticket that is answered, without a lock."""
        if self._state != FINISHED:
            return self.result(0)
        if self._exception is not None:
            raise self._exception
        assert self._result is not None
        return self._result

    def resolve(self, error: BaseException | None) -> None:
        """By the pump, once: the message id, or the error."""
        outgoing = self.outgoing
        if self.on_resolved is not None:
            self.on_resolved(self, error)  # first: who finds nothing left to wait for must find what failed
        if error is None:
            self._result = outgoing.id if outgoing is not None else ""
        else:
            self._exception = error
        self.outgoing = None  # a future kept by its caller must not keep the body
        door = self.__dict__.setdefault("_door", _SHUT)
        if door is _SHUT:
            self._state = FINISHED
            if self._bell is not None:
                self._bell.release()
            return
        with door:
            self._state = FINISHED
            for waiter in self._waiters:
                waiter.add_result(self) if error is None else waiter.add_exception(self)
            door.notify_all()
        if self._bell is not None:
            self._bell.release()
        self._invoke_callbacks()

    def orphan(self, error: BaseException) -> None:
        """In a forked child: answer without touching a lock that a thread of the parent may have held."""
        if self._state != FINISHED:
            self.__dict__.pop("_door", None)
            self._exception, self._state = error, FINISHED

    @property
    def answered(self) -> bool:
        """As `done`, without a lock."""
        return self._state in _DONE

    @property
    def withdrawn(self) -> bool:
        """As `cancelled`, without a lock."""
        return self._state == CANCELLED_AND_NOTIFIED

    @property
    def claimed(self) -> bool:
        """As `running`, without a lock: with the broker, or on its way there."""
        return self._state == RUNNING

    def requeue(self) -> None:
        """By the pump, instead of `resolve`: the broker did not take it, it may be claimed again."""
        self._state = PENDING

    def cancel(self) -> bool:
        """Withdraw the message. True: it was not handed to the broker and never will be."""
        with self._condition:
            with _claims:
                if self._state != PENDING:
                    return self._state == CANCELLED_AND_NOTIFIED
                self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._condition.notify_all()
        self.outgoing = None
        if self._bell is not None:
            self._bell.release()
        if self.on_resolved is not None:
            self.on_resolved(self, None)
        self._invoke_callbacks()
        return True


def _renew_lock() -> None:
    """In a forked child: a thread that is not there may have held it."""
    global _claims
    _claims = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def claim(tickets: Iterable[Ticket]) -> list[Ticket]:
    """Of these, the ones that were not withdrawn; from now on they cannot be."""
    claimed = []
    with _claims:
        for ticket in tickets:
            if ticket._state == PENDING:
                ticket._state = RUNNING
                claimed.append(ticket)
    return claimed


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
        return ticket.outcome()
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
