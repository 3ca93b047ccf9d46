"""What the services of the shop tell each other. Importing this connects to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mqkit import Queue, Topic

Service = Literal["payment", "stock", "statistics"]
SERVICES: tuple[Service, ...] = ("payment", "stock", "statistics")


@dataclass(frozen=True, slots=True)
class Order:
    """`number` is the row in the file: two rows may be equal and are still two orders. Money is whole cents."""

    number: int
    customer: str
    date: str
    quantity: int
    cents: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """A service has done its part of an order, at the given attempt."""

    service: Service
    number: int
    quantity: int
    cents: int
    attempt: int


# The groups are named here, so that an order published before its services start reaches them all the same.
orders = Topic("orders", Order, key=lambda order: order.customer, partitions=4, groups=SERVICES)
# Orders that payment refused and somebody looked at: charged without asking the rules again.
approved = Queue("approved-orders", Order)
receipts = Queue("receipts", Receipt)


def receipt(service: Service, order: Order, attempt: int) -> Receipt:
    return Receipt(service, order.number, order.quantity, order.cents, attempt)
