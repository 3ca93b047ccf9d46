"""In from one broker, out to another: confirmed there before it is acknowledged here. Then a batch, judged one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from examples.contracts import OrderPlaced
from mqkit import Batch, Bus, Delivery, Queue, Reject, Topic, run

imports = Queue("imports", OrderPlaced)
placed = Topic("placed", OrderPlaced, key=lambda order: order.customer, partitions=6, groups=("warehouse",))

# Their URLs come from MQKIT_INBOUND_URL and MQKIT_OUTBOUND_URL, or from mqkit.toml.
inbound, outbound = Bus(name="inbound"), Bus(name="outbound")


class Warehouse:
    """Takes many orders in one go, and says which of them it could not take, and why."""

    def __init__(self) -> None:
        self.rows: list[OrderPlaced] = []

    def insert(self, orders: Sequence[OrderPlaced]) -> Mapping[int, Exception]:
        errors: dict[int, Exception] = {}
        for index, order in enumerate(orders):
            if order.cents < 0:
                errors[index] = Reject(f"order {order.order} costs {order.cents} cents")
            else:
                self.rows.append(order)
        return errors


outbound.provide(Warehouse, Warehouse, per="worker")


@inbound.on(imports)
def forward(order: OrderPlaced, delivery: Delivery[OrderPlaced]) -> None:
    delivery.publish(placed, order, via=outbound)


@outbound.on(placed, group="warehouse", batch=Batch(size=500, age=0.5))
def sink(batch: list[Delivery[OrderPlaced]], warehouse: Warehouse) -> None:
    for index, error in warehouse.insert([delivery.payload for delivery in batch]).items():
        batch[index].fail(error)


if __name__ == "__main__":
    run(inbound, outbound, grace=25.0)
