"""Faults between a bus and its system, made to happen at the seam, so that every backend can be asked about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mqkit.backends.base import Backend, Declaration, Outcome, Outgoing, Publisher, Received, Receiver, Settlement, Turn
from mqkit.errors import MqkitError


def accept(_: object) -> MqkitError | None:
    """Nothing is wrong."""
    return None


class Faults:
    """
    What goes wrong on the way; nothing, until a case says what.

    Attributes:
        publish: The error with which the system answers a message instead of taking it; None lets it pass.
        settle: The error with which the system refuses a settlement instead of carrying it out; None lets it pass.
        crash: Each is raised by one `receive`, as a defect of the driver would be.
    """

    def __init__(self, backend: Backend) -> None:
        self.publish: Callable[[Outgoing], MqkitError | None] = accept
        self.settle: Callable[[Settlement], MqkitError | None] = accept
        self.crash: list[Exception] = []
        publisher, receiver = backend.publisher, backend.receiver

        def faulty_publisher() -> Publisher:
            return FaultyPublisher(publisher(), self)

        def faulty_receiver(source: Declaration, window: int) -> Receiver:
            return FaultyReceiver(receiver(source, window), self)

        vars(backend).update(publisher=faulty_publisher, receiver=faulty_receiver)


class FaultyPublisher:
    """A publisher some of whose messages are refused, as `Faults.publish` says."""

    def __init__(self, inner: Publisher, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._refused: list[Outcome] = []

    def submit(self, batch: Sequence[Outgoing]) -> None:
        errors = [self._faults.publish(message) for message in batch]
        self._refused += [(message.token, error) for message, error in zip(batch, errors, strict=True) if error]
        if good := [message for message, error in zip(batch, errors, strict=True) if error is None]:
            self._inner.submit(good)

    def collect(self, timeout: float) -> Sequence[Outcome]:
        refused, self._refused = self._refused, []
        return [*refused, *self._inner.collect(0.0 if refused else timeout)]

    def abandon(self) -> Sequence[Outcome]:
        refused, self._refused = self._refused, []
        return [*refused, *self._inner.abandon()]

    def wake(self) -> None:
        self._inner.wake()

    @property
    def blocked(self) -> str | None:
        return self._inner.blocked

    def close(self) -> None:
        self._inner.close()


class FaultyReceiver:
    """A receiver some of whose settlements are refused, as `Faults.settle` says, and which crashes when told to."""

    def __init__(self, inner: Receiver, faults: Faults) -> None:
        self._inner = inner
        self._faults = faults
        self._refused: list[tuple[Received, MqkitError]] = []

    def settle(self, settlements: Sequence[Settlement]) -> None:
        for settlement in settlements:
            error = self._faults.settle(settlement)
            if error is None:
                self._inner.settle([settlement])
            else:
                self._refused.append((settlement.delivery, error))

    def receive(self, room: int, timeout: float) -> Turn:
        if self._faults.crash:
            raise self._faults.crash.pop(0)
        return self._told(self._inner.receive(room, 0.0 if self._refused else timeout))

    def flush(self, timeout: float) -> Turn:
        return self._told(self._inner.flush(timeout))

    def _told(self, turn: Turn) -> Turn:
        refused, self._refused = self._refused, []
        return Turn(turn.deliveries, turn.revoked, [*refused, *turn.refused]) if refused else turn

    def isolate(self, delivery: Received) -> None:
        self._inner.isolate(delivery)

    def wake(self) -> None:
        self._inner.wake()

    def now(self) -> float:
        return self._inner.now()

    def close(self) -> None:
        self._inner.close()
