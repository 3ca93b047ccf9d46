"""Gate: what a worker passes right before a handler starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from mqkit._call import Interrupted
from mqkit._settings import Settings
from mqkit.handlers import Where
from mqkit.message import Delivery
from mqkit.verdicts import Reject

ANSWER = 5.0  # seconds a handler waits to hear whether its delivery is still ours


class Skipped(BaseException):
    """`where` said no."""


class Gate:
    """
    Lets through what is still ours and should run. Used by workers; the pump hands in and takes back.

    `waiting` holds what is handed to the crew and not begun: who pops it first, the worker or the pump giving it back,
    has it. `served_at` is when the pump last asked the backend, so that what it holds was still ours.
    """

    def __init__(
        self,
        settings: Settings,
        lease: float | None,
        *,
        finish: Callable[[Delivery[Any], BaseException | None], None],
        wake: Callable[[], None],
        now: Callable[[], float],
        stopping: threading.Event,
    ) -> None:
        self.waiting: dict[Any, Delivery[Any]] = {}
        self.served_at = time.monotonic()
        self._finish, self._wake, self._now, self._stopping = finish, wake, now, stopping
        # What of a piece of work is still ours and should run; falsy for nothing.
        self.begin: Callable[[Any], Any] = self._begin if settings.batch is None else self._begin_all
        self._early = settings.early
        self._timeout, self._where = settings.timeout, settings.where
        # At most once a delivery was settled before, and is ours whatever happened since.
        self._half_lease = None if lease is None or settings.early else lease / 2
        self._asked_in_vain = 0.0

    def _begin_all(self, batch: list[Delivery[Any]]) -> list[Delivery[Any]]:
        return [delivery for delivery in batch if self._begin(delivery) is not None]

    def _begin(self, delivery: Delivery[Any]) -> Delivery[Any] | None:
        received = delivery._received
        slept = self._half_lease is not None and time.monotonic() - self.served_at > self._half_lease
        if slept and not self._ask_first():
            if self.waiting.pop(received.handle, None) is delivery:
                delivery._settled = True
                self._finish(delivery, Interrupted())  # released, uncounted, once the backend answers
            return None
        if received.lease_until is not None and not self._early and time.monotonic() > received.lease_until:
            return None
        if self.waiting.pop(received.handle, None) is not delivery:
            return None  # given back or revoked meanwhile
        if self._timeout is not None:
            delivery.deadline = time.monotonic() + self._timeout
        if received.expires_at is not None and received.expires_at <= self._now():
            delivery._settled = True
            self._finish(delivery, Reject("expired: its ttl passed before a handler could start"))
            return None
        return delivery if self._where is None or self._wanted(delivery, self._where) else None

    def _wanted(self, delivery: Delivery[Any], where: Where) -> bool:
        try:
            if where(delivery.message):
                return True
            outcome: BaseException = Skipped()
        except BaseException as exc:  # noqa: BLE001  a filter that raises is a failed attempt
            outcome = exc
        delivery._settled = True
        self._finish(delivery, outcome)
        return False

    def _ask_first(self) -> bool:
        """
        This process slept longer than half a lease: what it holds may be another's by now. Did the backend answer?

        The pump's next turn asks it and takes revoked deliveries out of `waiting`. Where one has waited in vain for the
        answer, the others do not wait again.
        """
        asked = self._asked_in_vain
        if self.served_at >= asked:
            asked = time.monotonic()
            self._wake()
            while self.served_at < asked and time.monotonic() < asked + ANSWER and not self._stopping.wait(0.005):
                self._wake()  # the turn that slept may have taken the one before
        if self.served_at >= asked:
            return True
        self._asked_in_vain = asked
        return False
