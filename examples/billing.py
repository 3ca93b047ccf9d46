"""Billing: two types of events, retry by type of error, an e-mail that leaves only with a charge that succeeded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from examples.contracts import Email, OrderCancelled, OrderPlaced, emails, orders
from mqkit import Delivery, Handlers, Retry

handlers = Handlers()


class CardDeclined(Exception):
    """The customer's bank says no, and will say so again."""


class Cards(Protocol):
    """Where cards are charged; `main` of a real shop provides one, a test another."""

    def charge(self, order: str, cents: int) -> None: ...
    def refund(self, order: str) -> None: ...


class Ledger:
    """What was booked, committed as a whole or not at all."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.pending: list[str] = []

    def book(self, line: str) -> None:
        self.pending.append(line)

    def commit(self) -> None:
        self.lines += self.pending


class Booking:
    """One delivery's transaction."""

    def __init__(self, ledger: Ledger) -> None:
        self.book = ledger.book


def begin(ledger: Ledger) -> Iterator[Booking]:
    """Resumed after the handler and before the message is settled; an error here would fail the attempt."""
    ledger.pending = []
    yield Booking(ledger)
    ledger.commit()


handlers.provide(Ledger, Ledger, per="worker")
handlers.provide(Booking, begin)


@handlers.on(
    orders,
    group="billing",
    concurrency=1,
    retry=Retry(attempts=5, on=(ConnectionError,), never=(CardDeclined,)),
)
def bill(
    event: OrderPlaced | OrderCancelled,
    delivery: Delivery[OrderPlaced | OrderCancelled],
    cards: Cards,
    booking: Booking,
) -> None:
    booking.book(f"{type(event).__name__} {event.order}")
    if isinstance(event, OrderPlaced):
        cards.charge(event.order, event.cents)
        delivery.publish(emails, Email(event.customer, f"Order {event.order} is paid"))
    else:
        cards.refund(event.order)
        delivery.publish(emails, Email(event.customer, f"Order {event.order} is cancelled"))
