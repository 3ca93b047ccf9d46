"""Forming: the batch that fills until it is full or old enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mqkit.handlers import Batch
from mqkit.message import Delivery


class Forming:
    """The batch a consumer is filling. Used by its thread only; `due` is read from others."""

    def __init__(self, batch: Batch, now: Callable[[], float]) -> None:
        self._size = batch.size
        self._age = batch.age
        self._now = now
        self._since = 0.0
        self.members: list[Delivery[Any]] = []

    def join(self, delivery: Delivery[Any]) -> None:
        if not self.members:
            self._since = self._now()
        self.members.append(delivery)

    @property
    def full(self) -> bool:
        return len(self.members) >= self._size

    @property
    def due(self) -> float | None:
        """When it is old enough, by the backend's clock; None while it is empty."""
        return self._since + self._age if self.members else None

    @property
    def ready(self) -> bool:
        """Is it full, or old enough?"""
        due = self.due
        return due is not None and (self.full or self._now() >= due)

    def take(self) -> list[Delivery[Any]]:
        """Its members; the next batch begins."""
        members, self.members = self.members, []
        return members
