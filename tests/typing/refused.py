"""What type checkers must refuse: exactly the marked lines. Never run; read by test_typing.py."""

from __future__ import annotations

from dataclasses import dataclass

from mqkit import Batch, Broadcast, Bus, Delivery, Handlers, Queue, Retry, Topic


@dataclass
class OrderPlaced:
    order: str


@dataclass
class OrderCancelled:
    order: str


orders = Topic("orders", OrderPlaced)
events = Topic("events", OrderPlaced | OrderCancelled)
imports = Queue("imports", OrderPlaced)
ticks = Broadcast("ticks", str)
bus, handlers = Bus(), Handlers()

# Payloads.
bus.publish(orders, "oops")  # refused
bus.publish_soon(orders, "oops")  # refused
bus.publish_many(orders, ["oops"])  # refused
bus.publish(orders, OrderCancelled("1"))  # refused
bus.publish(events, "oops")  # refused
bus.publish(imports, None)  # refused

# Destinations are never texts, and a topic is no queue.
bus.publish("orders", OrderPlaced("1"))  # refused
bus.declare("orders")  # refused
bus.dead_letters("orders")  # refused
bus.dead_letters(ticks)  # refused
bus.dead_letters(orders)  # refused
bus.dead_letters(imports, group="billing")  # refused
bus.aio.dead_letters(orders)  # refused
handlers.on("orders", group="billing")  # refused
bus.subscription("orders", group="billing")  # refused
queue: Queue[OrderPlaced] = orders  # refused
narrow: Topic[OrderPlaced] = events  # refused
wide: Topic[OrderPlaced | OrderCancelled] = orders  # refused

# Options of publishing.
bus.publish(orders, OrderPlaced("1"), routing_key="x")  # refused
bus.publish(orders, OrderPlaced("1"), delay="1 s")  # refused
bus.publish(orders, OrderPlaced("1"), headers={"a": 1})  # refused
bus.publish(orders, OrderPlaced("1"), 5.0)  # refused
bus.publish_soon(orders, OrderPlaced("1"), timeout=1.0)  # refused

# Groups.
handlers.on(orders)  # refused
handlers.on(imports, group="billing")  # refused
handlers.on(ticks, group="billing")  # refused
bus.subscription(orders)  # refused
bus.subscription(imports, group="billing")  # refused
bus.subscription(imports, match="a.*")  # refused

# Options of handlers.
handlers.on(imports, start="earliest")  # refused
handlers.on(ticks, retry=Retry())  # refused
handlers.on(imports, order="keys")  # refused
handlers.on(imports, promise="maybe")  # refused
handlers.on(imports, settle="later")  # refused
handlers.on(imports, prefetch=1)  # refused
handlers.on(imports, Retry())  # refused
handlers.provide(OrderPlaced, OrderPlaced, per="request")  # refused
handlers.include(bus, "orders")  # refused

# Options of destinations and of the bus.
Topic("x", OrderPlaced, priorities=3)  # refused
Queue("x", OrderPlaced, groups=("a",))  # refused
Queue("x", OrderPlaced, key=lambda order: order.customer)  # refused
Queue("x", OrderPlaced, key=lambda order: 1)  # refused
Broadcast("x", str, key=lambda text: text)  # refused
Bus("memory://", overflow="drop")  # refused
Bus("memory://", "name")  # refused
Retry(5)  # refused
Retry(on=(1,))  # refused
Batch(size=5)  # refused


@handlers.on(imports)  # refused
def returns(order: OrderPlaced) -> str:
    return order.order


@handlers.on(imports)  # refused
async def returns_async(order: OrderPlaced) -> int:
    return 1


@handlers.on(imports)  # refused
def other(order: OrderCancelled) -> None: ...


@handlers.on(events, group="billing")  # refused
def narrower(order: OrderPlaced) -> None: ...


@handlers.on(imports)  # refused
def nothing() -> None: ...


@handlers.on(imports, batch=Batch(size=1, age=0.0))  # refused
def single(order: OrderPlaced) -> None: ...


@handlers.on(imports)  # refused
def many(batch: list[Delivery[OrderPlaced]]) -> None: ...


@handlers.on(imports, batch=Batch(size=1, age=0.0))  # refused
def other_batch(batch: list[Delivery[OrderCancelled]]) -> None: ...


def cancel(order: OrderCancelled) -> None: ...


@handlers.on(imports)
def stages(order: OrderPlaced, delivery: Delivery[OrderPlaced]) -> None:
    delivery.publish(orders, "oops")  # refused
    delivery.publish("orders", order)  # refused
    delivery.publish(orders, order, timeout=1.0)  # refused
    delivery.retry(1.0)  # refused
    delivery.retry()  # refused
    delivery.fail("no")  # refused
    delivery.message.body = b""  # refused
    cancel(delivery.payload)  # refused


async def asynchronous() -> None:
    await bus.aio.publish(orders, "oops")  # refused
    await bus.publish(orders, OrderPlaced("1"))  # refused
    bus.aio.subscription(orders)  # refused
    async with bus:  # refused
        return
