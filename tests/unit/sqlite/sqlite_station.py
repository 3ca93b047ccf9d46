"""One process's use of a SQLite file through the backend contract, for tests and the programs they start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from mqkit._clock import SystemClock
from mqkit._url import Url
from mqkit.backends.base import Address, Declaration, Done, Outgoing, Received, Receiver
from mqkit.backends.sqlite import SqliteBackend
from mqkit.envelope import Envelope
from mqkit.errors import MqkitError

QUEUE = Address("queue", "emails")
KEYED = Address("queue", "orders")


def message(to: Address, id: str, **more: Any) -> Outgoing:
    values: dict[str, Any] = {"key": None, "headers": {}, "envelope": Envelope(), "token": id, "body": id.encode()}
    return Outgoing(to, id, **(values | more))


class Station:
    def __init__(self, path: object, **options: object) -> None:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        self.backend = SqliteBackend(Url.parse(f"sqlite:///{path}?{query}"), SystemClock())
        self.publisher = self.backend.publisher()
        self.admin = self.backend.admin()
        self._receivers: list[Receiver] = []

    def declare(self, address: Address, **more: Any) -> Declaration:
        declaration = Declaration(address, **more)
        self.admin.declare([declaration])
        return declaration

    def receiver(self, address: Address, **more: Any) -> Receiver:
        receiver = self.backend.receiver(self.declare(address, **more), 100)
        self._receivers.append(receiver)
        return receiver

    def outcomes(self, *messages: Outgoing) -> dict[str, MqkitError | None]:
        self.publisher.submit(messages)
        found: dict[str, MqkitError | None] = {}
        deadline = time.monotonic() + 30
        while len(found) < len(messages) and time.monotonic() < deadline:
            found.update(self.publisher.collect(1.0))
        return found

    def publish(self, to: Address, *ids: str, **more: Any) -> None:
        outcomes = self.outcomes(*(message(to, id, **more) for id in ids))
        assert outcomes == dict.fromkeys(ids)

    def depth(self, address: Address) -> tuple[int, int, int]:
        [found] = [each for each in self.admin.describe() if each.address == address]
        return found.ready, found.inflight, found.delayed

    def pass_time(self, seconds: float) -> None:
        """So much later, by the clock of leases, delays and retention, for everybody in this process."""
        self.admin._committer.file.clock._offset += seconds  # type: ignore[attr-defined]

    def look_again(self) -> None:
        """File and disk are looked at once a second at most; let the next question look."""
        self.admin._committer._looked_at = 0.0  # type: ignore[attr-defined]

    def blocked_receives(self) -> int:
        """How many receives of this process wait for a message."""
        return len(self.admin._committer._standing)  # type: ignore[attr-defined]

    def next_look(self) -> float:
        """When those receives look again if nothing happens before, by the clock of `pass_time`."""
        return min(ticket.again_at for ticket in self.admin._committer._standing)  # type: ignore[attr-defined]

    def close(self) -> None:
        for receiver in self._receivers:
            receiver.close()
        self.admin.close()
        self.publisher.close()
        self.backend.close()


def take(receiver: Receiver, count: int, timeout: float = 5.0) -> list[Received]:
    """Exactly `count` deliveries, or those that came within the timeout."""
    deadline = time.monotonic() + timeout
    found: list[Received] = []
    while len(found) < count and time.monotonic() < deadline:
        found += receiver.receive(count - len(found), deadline - time.monotonic()).deliveries
    return found


def take_now(receiver: Receiver, most: int = 1000) -> list[Received]:
    """What can be taken at this moment; one look, which waits for nothing."""
    return list(receiver.receive(most, 0.0).deliveries)


def until(condition: Callable[[], object], within: float = 30.0) -> None:
    """Return as soon as the condition holds; `AssertionError` after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s"
        time.sleep(0.002)


def done(receiver: Receiver, deliveries: Sequence[Received]) -> None:
    receiver.settle([Done(delivery) for delivery in deliveries])
    assert not receiver.flush(5.0).refused


def ids(deliveries: Sequence[Received]) -> list[str]:
    return [delivery.id for delivery in deliveries]
