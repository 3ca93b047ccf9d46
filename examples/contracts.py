"""Destinations that the small programs of this folder share."""

from __future__ import annotations

from dataclasses import dataclass

from mqkit import Queue, Topic


@dataclass(frozen=True, slots=True)
class OrderPlaced:
    order: str
    customer: str
    cents: int


@dataclass(frozen=True, slots=True)
class OrderCancelled:
    order: str
    customer: str


@dataclass(frozen=True, slots=True)
class Email:
    customer: str
    subject: str


orders = Topic("orders", OrderPlaced | OrderCancelled, key=lambda event: event.customer, partitions=6)
emails = Queue("emails", Email)
