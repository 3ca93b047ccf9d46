"""What type checkers must accept. Never run; read by test_typing.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, TypeVar, assert_type

from mqkit import (
    Ack,
    AsyncBus,
    Batch,
    Broadcast,
    Bus,
    DeadLetter,
    Delivery,
    Handlers,
    PublishFailed,
    PublishOptions,
    Queue,
    Reject,
    Retry,
    RetryLater,
    Topic,
    exponential,
    fixed,
    linear,
    run,
)
from mqkit.testing import VirtualClock, run_until_idle

T = TypeVar("T")


@dataclass
class OrderPlaced:
    order: str
    customer: str


@dataclass
class OrderCancelled:
    order: str
    customer: str


class Tick(TypedDict):
    symbol: str
    price: float


class Session: ...


class Cards(Protocol):
    def charge(self, order: str) -> None: ...


orders = Topic("orders", OrderPlaced | OrderCancelled, key=lambda event: event.customer, partitions=6)
placed = Topic("placed", OrderPlaced, key=lambda order: order.customer, groups=("warehouse",))
imports = Queue("imports", OrderPlaced, priorities=3)
texts = Queue("texts", str)
anything = Queue("anything")
ticks = Broadcast("ticks", Tick)
lists = Queue("lists", list[OrderPlaced])
optional = Queue("optional", OrderPlaced | None)

# Destinations know their payload, unions and containers too.
assert_type(orders, Topic[OrderPlaced | OrderCancelled])
assert_type(placed, Topic[OrderPlaced])
assert_type(texts, Queue[str])
assert_type(anything, Queue[Any])
assert_type(ticks, Broadcast[Tick])
assert_type(lists, Queue[list[OrderPlaced]])
assert_type(optional, Queue[OrderPlaced | None])

bus = Bus("memory://", name="shop", declare="check", buffer=10, overflow="reject", clock=VirtualClock())
inbound, outbound = Bus(name="inbound"), Bus(name="outbound")
handlers = Handlers()


# Handlers: of either colour, with the payload first and anything provided after it.
@handlers.on(orders, group="billing", order="key", retry=Retry(on=(ConnectionError,), backoff=exponential(base=0.1)))
def bill(
    event: OrderPlaced | OrderCancelled,
    delivery: Delivery[OrderPlaced | OrderCancelled],
    session: Session,
    cards: Cards,
) -> None:
    cards.charge(event.order)
    delivery.publish(texts, event.customer, delay=1.5, headers={"kind": "receipt"})


@handlers.on(orders, group="mail", start="earliest", timeout=5.0, promise="exactly_once", retry=Retry(backoff=fixed(1)))
async def mail(event: OrderPlaced | OrderCancelled, bus: AsyncBus) -> None:
    await bus.publish(texts, event.customer)


@handlers.on(placed, group="wider")
def wider(event: OrderPlaced | OrderCancelled) -> None: ...


@handlers.on(placed, group="widest", settle="manual", where=lambda message: message.key is not None)
def widest(event: object, delivery: Delivery[OrderPlaced]) -> None:
    delivery.ack()
    delivery.retry(after=1.0)
    delivery.reject("no")
    delivery.fail(ValueError())


@handlers.on(placed, group="warehouse", batch=Batch(size=500, age=2.0))
def sink(batch: list[Delivery[OrderPlaced]], session: Session) -> None:
    for delivery in batch:
        assert_type(delivery, Delivery[OrderPlaced])
        assert_type(delivery.payload, OrderPlaced)
        delivery.fail(ValueError())


@handlers.on(imports, batch=Batch(size=10, age=0.0))
async def slurp(batch: list[Delivery[OrderPlaced]]) -> None: ...


@inbound.on(imports)
def forward(order: OrderPlaced, delivery: Delivery[OrderPlaced]) -> None:
    delivery.publish(placed, order, via=outbound)


@handlers.on(ticks, concurrency=1)
async def watch(tick: Tick) -> None:
    assert_type(tick["price"], float)


@handlers.on(anything)
def whatever(value: Any) -> None:
    raise RetryLater(after=1.0) if value is None else Reject("no") if value == 1 else Ack()


# A decorated handler is still the function it was.
bill(OrderPlaced("1", "c"), *([]))
assert_type(wider(OrderPlaced("1", "c")), None)


def begin() -> Iterator[Session]:
    yield Session()


async def begin_async() -> AsyncIterator[Session]:
    yield Session()


handlers.provide(Session, begin)
handlers.provide(Session, begin_async, per="worker")
handlers.provide(Cards, lambda: object(), per="worker")


@handlers.wrap
@contextmanager
def timed(delivery: Delivery[Any]) -> Iterator[None]:
    yield


@bus.wrap
@asynccontextmanager
async def traced(delivery: Delivery[Any]) -> AsyncIterator[None]:
    yield


bus.include(handlers, inbound)

# Publishing.
assert_type(bus.publish(orders, OrderPlaced("1", "c"), timeout=1.0, key="k", id="i", ttl=3.0), str)
assert_type(bus.publish(orders, OrderCancelled("1", "c")), str)
assert_type(bus.publish(ticks, Tick(symbol="A", price=1.0)), str)
assert_type(bus.publish(imports, OrderPlaced("1", "c"), priority=2), str)
assert_type(bus.publish(optional, None), str)
assert_type(bus.publish(anything, {"a": [1]}), str)
assert_type(bus.publish(lists, []), str)
assert_type(bus.publish_soon(texts, "x").result(1.0), str)
assert_type(bus.publish_many(texts, ["x", "y"], ttl=1.0), list[str | PublishFailed])
options: PublishOptions = {"key": "k", "headers": {"a": "b"}, "delay": 1.0}
bus.publish(texts, "x", **options)
bus.flush(timeout=1.0)
bus.declare(orders, imports, ticks)


def resend(bus: Bus, queue: Queue[T], values: Sequence[T]) -> Mapping[str, T]:
    """Generic code keeps the type."""
    return {bus.publish(queue, value): value for value in values}


assert_type(resend(bus, texts, ["a"]), Mapping[str, str])

# Pulling.
with bus.subscription(orders, group="audit", prefetch=4, start="earliest") as audit:
    for delivery in audit:
        assert_type(delivery.payload, OrderPlaced | OrderCancelled)
with bus.subscription(imports) as messages:
    assert_type(messages.receive(max=10, timeout=0.5), list[Delivery[OrderPlaced]])
with bus.subscription(ticks, match="eu.*", buffer=10, overflow="drop_newest") as live:
    assert_type(live.dropped, int)

# Dead letters.
assert_type(bus.dead_letters(placed, group="warehouse").list(limit=5), list[DeadLetter[OrderPlaced]])
assert_type(bus.dead_letters(imports).get("1"), DeadLetter[OrderPlaced] | None)
bus.dead_letters(imports).replay(["1"], to=placed, rate=10.0)
bus.dead_letters(imports).purge(where=lambda letter: letter.attempts > 3)
[dead] = bus.dead_letters(imports).list(where=lambda letter: letter.error_type == "CardDeclined")
bus.forward(texts, dead.message, timeout=1.0)


# The awaitable face.
@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    async with bus.aio:
        yield


async def use(bus: Bus) -> None:
    assert_type(await bus.aio.publish(texts, "x", delay=1.0), str)
    assert_type(await (await bus.aio.publish_soon(texts, "x")), str)
    assert_type(await bus.aio.publish_many(texts, ["x"]), list[str | PublishFailed])
    async with bus.aio.subscription(orders, group="audit") as messages:
        async for delivery in messages:
            assert_type(delivery.payload, OrderPlaced | OrderCancelled)
            delivery.ack()
    async with bus.aio.worker(only=["emails", orders], grace=1.0):
        await bus.aio.flush()
    assert_type(await bus.aio.dead_letters(imports).list(), list[DeadLetter[OrderPlaced]])


# Running.
with bus, bus.worker(only=[orders, "imports"], grace=1.0):
    trace = run_until_idle(bus, timeout=1.0)
    assert_type([attempt.outcome == "dead" for attempt in trace.of("orders", "billing")], list[bool])
run(inbound, outbound, grace=25.0)
Retry(attempts=None, within=3600.0, backoff=linear(step=1, cap=30.0), never=(ValueError,), crashes=3)
