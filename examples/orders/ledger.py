"""Ledger: what the services report, each part of each order once, however often its receipt arrives."""

from __future__ import annotations

from examples.orders.contracts import Receipt, Service, receipts
from mqkit import Batch, Bus, Delivery

bus = Bus()


class Ledger:
    """Written by one handler at a time; reading while it works gives the state of a moment."""

    def __init__(self) -> None:
        self._receipts: dict[tuple[Service, int], Receipt] = {}

    def add(self, receipt: Receipt) -> None:
        self._receipts[receipt.service, receipt.number] = receipt

    def __len__(self) -> int:
        return len(self._receipts)

    def of(self, service: Service) -> list[Receipt]:
        return [receipt for receipt in self._receipts.copy().values() if receipt.service == service]


@bus.on(receipts, batch=Batch(size=500, age=0.1), concurrency=1)
def book(batch: list[Delivery[Receipt]], ledger: Ledger) -> None:
    for delivery in batch:
        ledger.add(delivery.payload)
