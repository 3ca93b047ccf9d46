"""The small programs of examples/, executed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from examples import billing, two_brokers, web
from examples.billing import CardDeclined, Cards, Ledger
from examples.contracts import Email, OrderCancelled, OrderPlaced, emails, orders
from mqkit import Bus
from mqkit.errors import ConfigError
from mqkit.testing import VirtualClock, run_until_idle

ROOT = Path(__file__).parents[2]


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
def brokers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, str]:
    urls = f"sqlite:///{tmp_path}/in.db", f"sqlite:///{tmp_path}/out.db"
    for name, url in zip(("MQKIT_INBOUND_URL", "MQKIT_OUTBOUND_URL"), urls, strict=True):
        monkeypatch.setenv(name, url)
    return urls


def test_orders_cross_from_one_broker_to_another_and_only_the_bad_one_of_a_batch_dies():
    inbound, outbound = Bus("memory://", clock=VirtualClock()), Bus("memory://", clock=VirtualClock())
    warehouse = two_brokers.Warehouse()
    inbound.on(two_brokers.imports)(lambda order, delivery: None)
    outbound.include(two_brokers.outbound)
    outbound.provide(two_brokers.Warehouse, lambda: warehouse, per="worker")
    for cents in (1, -2, 3):
        outbound.publish(two_brokers.placed, OrderPlaced(str(cents), "c", cents))

    run_until_idle(outbound)

    assert [order.cents for order in warehouse.rows] == [1, 3]
    [dead] = outbound.dead_letters(two_brokers.placed, group="warehouse").list()
    assert dead.reason == "order -2 costs -2 cents"
