"""Stock: sets discs aside, ten at most per order."""

from __future__ import annotations

from examples.orders.contracts import Order, orders, receipt, receipts
from examples.orders.service import run
from mqkit import Bus, Delivery, Retry

LIMIT = 10  # discs

bus = Bus()


class TooManyDiscs(Exception):
    """The shop does not sell that many at once, today or tomorrow."""


@bus.on(orders, group="stock", retry=Retry(never=(TooManyDiscs,)))
def reserve(order: Order, delivery: Delivery[Order]) -> None:
    if order.quantity > LIMIT:
        raise TooManyDiscs(f"{order.quantity} discs, and the limit is {LIMIT}")
    delivery.publish(receipts, receipt("stock", order, delivery.attempt))


if __name__ == "__main__":
    run(bus)
