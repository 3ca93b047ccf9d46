"""A backend of a third party: the memory broker, but one that can do little, as many network systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mqkit._clock import Clock
from mqkit._url import Url
from mqkit.backends.base import Declaration, Done, Outgoing, Release, Settlement, Turn
from mqkit.backends.memory import MemoryBackend, MemoryPublisher, MemoryReceiver
from mqkit.errors import PublishFailed, Unavailable


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


class DistantBackend(MemoryBackend):
    """As a broker that hands a message out again at once and unchanged, or not at all."""

    virtual_clock = True

    def __init__(self, url: Url, clock: Clock) -> None:
        super().__init__(url, clock)
        self.published: list[Outgoing] = []
        self.refuses = 0  # messages it will not take
        self.silent = 0  # flushes it will not answer
        self.capabilities = replace(self.capabilities, name="distant", atomic=False, release=0.0, lost="at_most")

    def publisher(self) -> DistantPublisher:
        return DistantPublisher(self)

    def receiver(self, source: Declaration, window: int) -> DistantReceiver:
        super().receiver(source, window)
        return DistantReceiver(self, source)


class DistantPublisher(MemoryPublisher):
    def __init__(self, backend: DistantBackend) -> None:
        super().__init__(backend._broker)
        self._backend = backend

    def submit(self, batch: Sequence[Outgoing]) -> None:
        for message in batch:
            if self._backend.refuses:
                self._backend.refuses -= 1
                self._outcomes.append((message.token, PublishFailed("not now")))
            else:
                self._backend.published.append(message)
                super().submit([message])


class DistantReceiver(PlainReceiver):
    def __init__(self, backend: DistantBackend, source: Declaration) -> None:
        super().__init__(backend._broker, source.address)
        self._backend = backend
        self._ordered = source.order == "key"

    def settle(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            if isinstance(settlement, Release) and not self._ordered and (settlement.after or settlement.attempt):
                raise AssertionError("a wait or a number cannot be kept in place here")
        super().settle(settlements)

    def flush(self, timeout: float) -> Turn:
        if self._backend.silent:
            self._backend.silent -= 1
            self._staged.clear()
            raise Unavailable("no answer")
        return super().flush(timeout)
