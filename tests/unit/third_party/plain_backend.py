"""A backend of a third party: the memory broker, but one that can do little, as many network systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mqkit._clock import Clock
from mqkit._url import Url
from mqkit.backends.base import Declaration, Done, Settlement
from mqkit.backends.memory import MemoryBackend, MemoryReceiver


class PlainBackend(MemoryBackend):
    virtual_clock = True

    def __init__(self, url: Url, clock: Clock) -> None:
        super().__init__(url, clock)
        self.capabilities = replace(
            self.capabilities,
            name="plain",
            atomic=False,
            order_by_key=False,
            delay=0.0,
            ttl=False,
            priorities=0,
            replay=False,
            broadcast=False,
        )

    def receiver(self, source: Declaration, window: int) -> PlainReceiver:
        return PlainReceiver(self._broker, source.address)


class PlainReceiver(MemoryReceiver):
    def settle(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            if isinstance(settlement, Done) and settlement.copies:
                raise AssertionError("copies must be confirmed before they reach a backend that is not atomic")
        super().settle(settlements)
