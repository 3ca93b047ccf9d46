"""run_until_idle: let handlers work until nothing is left to do, and return what happened."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator, Sequence

from mqkit._trace import Attempt
from mqkit.backends.base import Address, Depth
from mqkit.bus import Bus
from mqkit.errors import ConfigError, TimedOut
from mqkit.testing.clock import VirtualClock
from mqkit.worker import Worker


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """Every attempt, in the order in which they ended."""

    attempts: Sequence[Attempt]

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self.attempts)

    def __len__(self) -> int:
        return len(self.attempts)

    def of(self, destination: str, group: str | None = None) -> list[Attempt]:
        """The attempts of one queue or group."""
        return [one for one in self.attempts if (one.destination, one.group) == (destination, group)]

    def raise_first(self) -> None:
        """Raise the first error a handler raised, if any did."""
        for attempt in self.attempts:
            if attempt.error is not None:
                raise attempt.error


QUIET = 0.3  # seconds for which nothing must be seen at a broker where a message may be between two places


def run_until_idle(*buses: Bus, timeout: float = 10.0) -> Trace:
    """
    Consume with these buses until nothing is ready, running, unsettled or due.

    A virtual clock is moved from due time to due time, so back-offs and delays cost nothing; a real one is waited for.

    Raises:
        TimedOut: Still busy after `timeout` real seconds.
        ConfigError: A message waits for which no handler is registered, or nothing is registered at all.
    """
    attempts: list[Attempt] = []
    happened = threading.Event()

    def observe(attempt: Attempt) -> None:
        attempts.append(attempt)
        happened.set()

    deadline = time.monotonic() + timeout
    idle_since: float | None = None
    quiet = max((QUIET for bus in buses if not bus.link.backend.capabilities.atomic), default=0.0)
    workers = [Worker(bus, only=None, grace=1.0, loop=None, observe=observe) for bus in buses]
    try:
        for worker in workers:
            worker.start()
        while True:
            happened.clear()
            if not all(_idle(bus, worker) for bus, worker in zip(buses, workers, strict=True)):
                idle_since = None
            elif time.monotonic() >= (idle_since := idle_since or time.monotonic()) + quiet:
                break
            if time.monotonic() > deadline:
                busy = [
                    str(depth)
                    for bus in buses
                    for depth in _depths(bus)
                    if depth.ready or depth.inflight or depth.delayed
                ]
                raise TimedOut(f"still busy after {timeout:g} s: {'; '.join(busy) or 'publishes are on their way'}")
            happened.wait(0.002)
    finally:
        for worker in workers:
            worker.stop()
    for bus in buses:
        _refuse_unhandled(bus)
    return Trace(attempts)


def _idle(bus: Bus, worker: Worker) -> bool:
    if bus.publish_pump.pending:
        return False
    handled = {consumer.settings.declaration.address for consumer in worker.consumers}
    depths = [depth for depth in _depths(bus) if depth.address in handled or _feeds(depth.address, handled)]
    clock = bus.link.clock
    if not isinstance(clock, VirtualClock):
        return not any(depth.ready or depth.inflight or depth.delayed for depth in depths) and not worker.busy
    forming = [consumer for consumer in worker.consumers if consumer.only_waits_for_its_batch]
    in_forming = sum(consumer.in_hand for consumer in forming)
    # What is parked behind its key waits for a message that is counted itself, or for one that is not due.
    parked = bus.link.backend.admin().parked()  # type: ignore[attr-defined]
    if sum(depth.ready + depth.inflight for depth in depths) - parked > in_forming or _working(worker):
        return False
    due = [moment for consumer in forming if (moment := consumer.next_due()) is not None]
    if (moment := bus.link.backend.admin().next_due()) is not None:  # type: ignore[attr-defined]
        due.append(moment)
    if not due:
        return True
    clock.advance_to(min(due))
    for consumer in worker.consumers:
        consumer.clock_moved()
    return False


def _working(worker: Worker) -> bool:
    return any(consumer.busy and not consumer.only_waits_for_its_batch for consumer in worker.consumers)


def _feeds(address: Address, handled: set[Address]) -> bool:
    """Is this a topic, delayed messages of which will reach a handled group?"""
    return address.kind == "topic" and not address.group and any(one.name == address.name for one in handled)


def _depths(bus: Bus) -> Sequence[Depth]:
    admin = bus.link.backend.admin()
    try:
        return admin.describe()
    finally:
        admin.close()


def _refuse_unhandled(bus: Bus) -> None:
    handled = {registration.name for registration, _, _ in bus._collected()}
    known = {destination.name for destination in bus.link.topology.destinations}
    for depth in _depths(bus):
        address = depth.address
        if address.dead or address.kind == "broadcast" or not depth.ready:
            continue
        if str(address) not in handled and address.name in known:
            raise ConfigError(f"{depth.ready} messages wait in {address}, for which {bus!r} has no handler")
