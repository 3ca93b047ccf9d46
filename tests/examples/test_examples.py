"""The small programs of examples/, executed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from examples import billing, two_brokers, web
from examples.billing import CardDeclined, Cards, Ledger
from examples.contracts import Email, OrderCancelled, OrderPlaced, emails, orders
from mqkit import Bus
from mqkit.errors import ConfigError
from mqkit.testing import VirtualClock, run_until_idle


class Bank:
    """Cards of a bank that declines some orders and is away for the first calls of others."""

    def __init__(self, *, declines: tuple[str, ...] = (), away: int = 0) -> None:
        self.declines = declines
        self.away = away
        self.charged: dict[str, int] = {}

    def charge(self, order: str, cents: int) -> None:
        if order in self.declines:
            raise CardDeclined(order)
        if self.away:
            self.away -= 1
            raise ConnectionError("the bank is away")
        self.charged[order] = cents

    def refund(self, order: str) -> None:
        self.charged.pop(order, None)


def shop(bank: Bank) -> tuple[Bus, Ledger, list[Email]]:
    bus, ledger, sent = Bus("memory://", clock=VirtualClock()), Ledger(), []
    bus.include(billing.handlers)
    bus.provide(Cards, lambda: bank, per="worker")
    bus.provide(Ledger, lambda: ledger, per="worker")
    bus.on(emails)(sent.append)
    bus.dead_letters(orders, group="billing").list()  # declares the group, as its first worker would
    return bus, ledger, sent


def test_a_paid_order_is_booked_and_mailed():
    bank = Bank()
    bus, ledger, sent = shop(bank)
    bus.publish(orders, OrderPlaced("1", "c", 500))
    bus.publish(orders, OrderCancelled("1", "c"))

    run_until_idle(bus).raise_first()

    assert bank.charged == {}
    assert ledger.lines == ["OrderPlaced 1", "OrderCancelled 1"]
    assert [email.subject for email in sent] == ["Order 1 is paid", "Order 1 is cancelled"]


def test_a_declined_card_is_a_dead_letter_on_its_first_attempt():
    bus, ledger, sent = shop(Bank(declines=("1",)))
    bus.publish(orders, OrderPlaced("1", "c", 500))

    trace = run_until_idle(bus)

    assert [attempt.outcome for attempt in trace.of("orders", "billing")] == ["dead"]
    [dead] = bus.dead_letters(orders, group="billing").list()
    assert (dead.attempts, dead.error_type) == (1, "CardDeclined")
    assert (ledger.lines, sent) == ([], [])


def test_a_bank_that_is_away_is_asked_again_and_the_mail_is_sent_once():
    bank = Bank(away=2)
    bus, ledger, sent = shop(bank)
    bus.publish(orders, OrderPlaced("1", "c", 500))
    bus.publish(orders, OrderPlaced("2", "c", 600))

    trace = run_until_idle(bus)

    assert [attempt.outcome for attempt in trace.of("orders", "billing")] == ["retry", "retry", "done", "done"]
    assert list(bank.charged) == ["1", "2"]
    assert ledger.lines == ["OrderPlaced 1", "OrderPlaced 2"]
    assert len(sent) == 2


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MQKIT_INBOUND_URL", "memory://inbound")
    monkeypatch.setenv("MQKIT_OUTBOUND_URL", "memory://outbound")
    yield
    two_brokers.inbound.close()
    two_brokers.outbound.close()


@pytest.mark.usefixtures("brokers")
def test_orders_cross_from_one_broker_to_another_and_only_the_bad_one_of_a_batch_dies():
    warehouse = two_brokers.Warehouse()
    two_brokers.outbound.provide(two_brokers.Warehouse, lambda: warehouse, per="worker")
    for cents in (1, -2, 3):
        two_brokers.inbound.publish(two_brokers.imports, OrderPlaced(str(cents), "c", cents))

    run_until_idle(two_brokers.inbound, two_brokers.outbound)

    assert sorted(order.cents for order in warehouse.rows) == [1, 3]
    [dead] = two_brokers.outbound.dead_letters(two_brokers.placed, group="warehouse").list()
    assert dead.reason == "order -2 costs -2 cents"


class Server:
    """As much of an ASGI server as an application needs: its lifespan and one request at a time."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def __aenter__(self) -> Server:
        self.task = asyncio.create_task(web.app({"type": "lifespan"}, self.events.get, self.answers.put))
        await self.events.put({"type": "lifespan.startup"})
        assert (await self.answers.get())["type"] == "lifespan.startup.complete"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.events.put({"type": "lifespan.shutdown"})
        assert (await self.answers.get())["type"] == "lifespan.shutdown.complete"
        await self.task

    async def post(self, value: object) -> tuple[int, str]:
        body: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        await body.put({"type": "http.request", "body": json.dumps(value).encode(), "more_body": False})
        await web.app({"type": "http"}, body.get, self.answers.put)
        start, end = await self.answers.get(), await self.answers.get()
        return start["status"], end["body"].decode()


def test_a_request_is_answered_with_the_id_of_the_order_that_it_published(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MQKIT_URL", "memory://web")

    async def serve() -> tuple[int, str]:
        async with Server() as server:
            return await server.post({"order": "1", "customer": "c", "cents": 500})

    with Bus("memory://web") as bus, bus.subscription(orders, group="shipping") as messages:
        status, id = asyncio.run(serve())
        [delivery] = messages.receive(timeout=5.0)
        assert (status, id, delivery.payload) == (202, delivery.id, OrderPlaced("1", "c", 500))
        delivery.ack()


def test_a_wrong_url_fails_when_the_application_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(web, "bus", Bus("nosuch://host"))

    async def start() -> None:
        async with web.lifespan():
            raise AssertionError("the application has started")

    with pytest.raises(ConfigError, match="nosuch"):
        asyncio.run(start())
