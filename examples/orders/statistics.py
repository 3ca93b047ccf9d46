"""Statistics: counts every order, also those that others refuse, in batches."""

from __future__ import annotations

from examples.orders.contracts import Order, orders, receipt, receipts
from examples.orders.service import run
from mqkit import Batch, Bus, Delivery

bus = Bus()


@bus.on(orders, group="statistics", batch=Batch(size=200, age=0.1))
def count(batch: list[Delivery[Order]]) -> None:
    for delivery in batch:
        delivery.publish(receipts, receipt("statistics", delivery.payload, delivery.attempt))


if __name__ == "__main__":
    run(bus)
