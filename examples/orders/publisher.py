"""The orders of the file, and publishing them."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path

from examples.orders.contracts import Order, orders
from mqkit import Bus

FILE = Path(__file__).with_name("cdnow_orders.csv")
# Orders, discs, cents, orders for nothing, above 200 dollars, of more than ten discs: as the README says.
FACTS = (6_919, 16_479, 244_091_94, 8, 44, 79)

CONFIRM = 300.0  # seconds in which the broker must have confirmed them; an emulator on one core needs some of them


def read() -> list[Order]:
    """Every order of the file. Raises `ValueError` when it is not the file that the README describes."""
    with FILE.open(newline="", encoding="utf-8") as lines:
        found = [
            Order(number, row["customer"], row["date"], int(row["quantity"]), int(Decimal(row["amount"]) * 100))
            for number, row in enumerate(csv.DictReader(lines), start=1)
        ]
    if facts(found) != FACTS:
        raise ValueError(f"{FILE.name} holds {facts(found)} and should hold {FACTS}; restore the file")
    return found


def facts(found: Sequence[Order]) -> tuple[int, int, int, int, int, int]:
    return (
        len(found),
        sum(order.quantity for order in found),
        sum(order.cents for order in found),
        sum(order.cents == 0 for order in found),
        sum(order.cents > 200_00 for order in found),
        sum(order.quantity > 10 for order in found),
    )


def publish(bus: Bus, found: Sequence[Order]) -> Iterator[int]:
    """Publish them all, yielding now and then how many are on their way; at the end the broker has every one."""
    for sent, order in enumerate(found, start=1):
        # A stable id: publishing again after a doubtful failure makes no second order of it.
        bus.publish_soon(orders, order, id=f"order-{order.number}")
        if sent % 500 == 0:
            yield sent
    bus.flush(timeout=CONFIRM)
    yield len(found)
