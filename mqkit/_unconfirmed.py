"""Unconfirmed: what `publish_soon` has accepted and nobody has answered, and what of it failed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from mqkit._signal import Signal
from mqkit._ticket import Ticket
from mqkit.errors import Closed, PublishFailed, PublishUnknown, TimedOut

KEPT = 1000  # failures that are kept for flush; of the others only the number


class Unconfirmed:
    """
    Any thread adds a ticket to `tickets`; answering it takes it out, through `resolved`.

    `watchers` are those who wait for an answer, so that whoever answers tells them only where somebody waits. Without a
    lock: a signal handler that publishes may have interrupted the thread that waits.
    """

    def __init__(self) -> None:
        self.tickets: set[Ticket] = set()
        self.watchers: list[Signal] = []
        self._noting = threading.RLock()
        self._failed = 0  # since the last time somebody asked
        self._failures: list[BaseException] = []  # the first of them

    def resolved(self, ticket: Ticket, error: BaseException | None) -> None:
        """One is about to be answered, or was withdrawn."""
        if error is not None:
            with self._noting:
                self._failed += 1
                if len(self._failures) < KEPT:
                    self._failures.append(error)
        self.tickets.discard(ticket)
        if self.watchers and ticket.withdrawn:
            self.tell()

    def tell(self) -> None:
        """Something was answered, or is not waited for any more."""
        for watcher in tuple(self.watchers):
            watcher.set()

    def wait_until(self, condition: Callable[[], object], timeout: float) -> bool:
        """Until it holds, looked at whenever somebody tells. False: it does not, and the time is over."""
        deadline, told = time.monotonic() + timeout, Signal()
        self.watchers.append(told)
        try:
            while not condition():
                if time.monotonic() >= deadline:
                    return False
                told.wait(deadline - time.monotonic())
        finally:
            self.watchers.remove(told)
        return True

    def wait(self, timeout: float) -> list[Ticket]:
        """Of what was accepted so far, what has no answer within the timeout."""
        late = list(self.tickets)

        def all_answered() -> bool:
            while late and late[-1].answered:
                late.pop()
            return not late

        self.wait_until(all_answered, timeout)
        return [ticket for ticket in late if not ticket.answered]

    def raise_failures(self) -> None:
        """Raise what failed since the last time somebody asked."""
        with self._noting:
            failures, self._failures = self._failures, []
            count, self._failed = self._failed, 0
        if count == 1:
            raise failures[0]
        if count:
            kinds = ", ".join(sorted({type(error).__name__ for error in failures}))
            summary = PublishFailed(f"{count} messages were not confirmed ({kinds}); first: {failures[0]}")
            summary.retryable = False
            raise summary from ExceptionGroup("publish_soon", [e for e in failures if isinstance(e, Exception)])


def raise_undelivered(late: Sequence[Ticket], why: str, *, given_up: bool) -> None:
    """Raise `TimedOut` if some of what was not answered when the bus began to close was not delivered."""
    errors = [ticket.exception() if ticket.done() else PublishUnknown() for ticket in late if not ticket.withdrawn]
    unknown = sum(isinstance(error, PublishUnknown) for error in errors)
    unsent = sum(error is not None for error in errors) - unknown
    if unknown or (unsent and (given_up or any(isinstance(error, Closed) for error in errors))):
        raise TimedOut(
            f"closed with {unsent + unknown} accepted messages undelivered ({unsent} not sent; {unknown} with the broker, "
            f"stored or not) {why}"
        )
