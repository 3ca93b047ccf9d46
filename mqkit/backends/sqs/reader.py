"""Looking at what waits in a queue: all of it is received, and shown to everybody again when the look is over."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from mqkit.backends.base import Address, Received
from mqkit.backends.sqs import wire
from mqkit.backends.sqs.desk import Desk
from mqkit.backends.sqs.holdings import Held, by_group
from mqkit.backends.sqs.options import MOST
from mqkit.backends.sqs.threads import Workers
from mqkit.errors import LeaseLost, MqkitError, Unavailable

HIDDEN = (
    10  # seconds for which what is looked at is hidden from others, unless that is renewed; who dies keeps it so long
)
SLOWLY = 50  # messages that are read and renewed in a second, at least: of more than that many, each is hidden longer
CONNECTIONS = 4  # polls at a time
EMPTY = 2  # answers without a message that mean that there are no more
TURN = 15.0  # seconds to wait for somebody else who looks at the same dead letters
LOOK = 0.1  # seconds between two looks whether he is gone


class Reader:
    """Of one queue, and one thread. What it has seen it holds until it is closed."""

    def __init__(self, desk: Desk, address: Address, *, fifo: bool) -> None:
        self.messages: list[Held] = []
        self._desk = desk
        self._address = address
        self._fifo = fifo
        self._workers = Workers(CONNECTIONS, "mqkit-sqs-look")
        self._hidden = HIDDEN

    def read(self) -> None:
        """
        Everything that waits, oldest first.

        Raises:
            Unavailable: Somebody else looks at these dead letters.
        """
        began, empty = time.monotonic(), 0
        expected, hidden = self._desk.depth()
        self._hidden = max(HIDDEN, expected // SLOWLY)
        while True:
            want = max(1, -(-(expected - len(self.messages)) // MOST))
            found = self._workers.each([self._poll] * min(CONNECTIONS, want))
            for error, came in found:
                self.messages += came
                if error is not None:
                    raise error
            self.stay()
            if any(came for _, came in found):
                empty = 0
                continue
            empty += 1
            if len(self.messages) < expected and empty < EMPTY:
                continue
            expected, hidden = self._desk.depth()
            expected += len(self.messages)
            others = hidden - len(self.messages)
            if self._address.dead and not self.messages and others > 0:
                if time.monotonic() - began > TURN:
                    raise Unavailable(f"{self._address} are being read by somebody else; try again")
                time.sleep(LOOK)
                empty = 0
            elif expected <= len(self.messages) or empty >= EMPTY:
                break
        self.messages.sort(key=_age)

    def drain(self) -> int:
        """Remove what waits, as it is received; how many."""
        total = empty = 0
        while empty < EMPTY:
            found = self._workers.each([self._take] * CONNECTIONS)
            for error, count in found:
                if error is not None:
                    raise error
                total += count
            empty = 0 if any(count for _, count in found) else empty + 1
        return total

    def remove(self, ids: set[str]) -> None:
        """Every message with one of these ids. Raises `LeaseLost` where somebody else has one by now."""
        self.stay()
        doomed = [held for held in self.messages if held.received.id in ids]
        for at in range(0, len(doomed), MOST):
            for error in self._desk.delete([held.receipt for held in doomed[at : at + MOST]]):
                if error is not None:
                    raise error
        gone = {id(held) for held in doomed}
        self.messages = [held for held in self.messages if id(held) not in gone]

    def close(self) -> None:
        batches = by_group(self.messages, MOST)
        self.messages = []

        def show(batch: Sequence[Held]) -> None:
            with contextlib.suppress(MqkitError):  # else they are hidden for a moment
                self._desk.hide(batch, 1 if self._fifo else 0)

        if batches:
            self._workers.each([lambda batch=batch: show(batch) for batch in batches])  # type: ignore[misc]
        self._workers.close()
        self._desk.close()

    def _poll(self) -> tuple[MqkitError | None, list[Held]]:
        try:
            arrivals = self._desk.poll(MOST, 0 if not self._address.dead else 1, self._hidden)
        except MqkitError as exc:
            return exc, []
        found = []
        for raw, head, until in arrivals:
            received = wire.received(self._address, self._desk.route.native, raw, head, until)
            received.lease_until, received.lost = None, 0
            received.native = wire.as_looked_at(received.native)
            group = raw.get("Attributes", {}).get("MessageGroupId", "") if self._fifo else ""
            found.append(Held(raw["ReceiptHandle"], group, received, until))
        return None, found

    def _take(self) -> tuple[MqkitError | None, int]:
        try:
            arrivals = self._desk.poll(MOST, 0)
            if arrivals:
                answers = self._desk.delete([arrival.raw["ReceiptHandle"] for arrival in arrivals])
                return next((error for error in answers if error is not None), None), len(arrivals)
        except MqkitError as exc:
            return exc, 0
        return None, 0

    def stay(self) -> None:
        """Go on hiding what is held, if its leases are half over."""
        now = time.monotonic()
        due = [held for held in self.messages if held.until - now < self._hidden / 2]
        for at in range(0, len(due), MOST):
            batch = due[at : at + MOST]
            for held, error in zip(batch, self._desk.hide(batch, self._hidden), strict=True):
                if error is None:
                    held.until = now + self._hidden
                elif isinstance(error, LeaseLost):
                    self.messages.remove(held)
                else:
                    raise error


def _age(held: Held) -> tuple[float, float, str]:
    """Dead letters by when they died, others by when they came."""
    received: Received = held.received
    dead = received.envelope.dead
    sent = int(received.native.attributes.get("SentTimestamp", 0)) / 1000
    return (dead.died_at if dead is not None and dead.died_at else sent, sent, received.id)
