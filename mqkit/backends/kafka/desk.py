"""Desk: one partition that is ours, with its ledger, what has arrived, what is handed out and what waits; pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from kafka import TopicPartition as Partition

from mqkit.backends.base import Address, Received, Release
from mqkit.backends.kafka import wire
from mqkit.backends.kafka.ledger import Held, Ledger, Position, past_of
from mqkit.backends.parked import Parked, Waiting


class Handle(msgspec.Struct, eq=False, gc=False):
    """Of one hand-out: it is equal to itself only."""

    partition: Partition
    offset: int


class Desk:
    """
    Attributes:
        inbox: Records that have arrived and were not handed out.
        out: What is in the core's hands, by offset.
        dirty: What was committed is not what is.
        left: What was committed last, as far as that is certain.
    """

    def __init__(self, address: Address, base: int, metadata: str, *, ordered: bool) -> None:
        self.ledger = Ledger(base, past_of(base, metadata))
        self.inbox: deque[Any] = deque()
        self.out: dict[int, Received] = {}
        self.dirty = False
        self.left: Position | None = None
        self.paused = False
        self._address = address
        self._ordered = ordered
        self._parked = Parked()

    def arrived(self, records: Sequence[Any]) -> bool:
        """More to hand out. False: these do not follow what was there, so the topic is another one of this name."""
        last: int = self.inbox[-1].offset if self.inbox else self.ledger.last
        first: int = records[0].offset
        self.inbox.extend(records)
        return first > last

    def take(self, room: int, now: float, width: int) -> list[Received]:
        """At most so many, still without a handle: what waited and is due, then what has arrived."""
        taken: list[Received] = []
        for waiting in self._parked.take(room, now):
            taken.append(self._once_more(waiting))
        inbox, ledger, out = self.inbox, self.ledger, self.out
        if ledger.crowded and ledger.held:
            return taken
        while inbox and len(taken) < room and ledger.width < width:
            record = inbox.popleft()
            offset = record.offset
            held = ledger.take(offset)
            self.dirty = True
            if held is None:
                continue
            received = wire.received(self._address, record, held)
            if held.due > now or (self._ordered and self._parked.holds(received)):
                self._park(offset, received, held)
                continue
            if held.parked:
                self._unpark(offset)
            out[offset] = received
            taken.append(received)
        return taken

    def settle(self, offset: int) -> None:
        del self.out[offset]
        self.ledger.settle(offset)
        self.dirty = True

    def committed(self, position: Position) -> None:
        self.left, self.dirty = position, False

    def release(self, offset: int, release: Release, now: float) -> None:
        received, before = self.out.pop(offset), self.ledger.state(offset)
        due = now + release.after if release.after else 0.0
        held = before._replace(due=due, parked=True, solo=received.solo)  # it has survived this hand-out, alone or not
        received = msgspec.structs.replace(received)
        if release.attempt is not None:  # a verdict; what is given back without one is as suspect as before
            held = held._replace(lost=0, solo=0, attempt=release.attempt, since=release.since or 0.0)
            received.lost, received.solo = 0, 0
            received.attempt, received.since = release.attempt, release.since
        self._park(offset, received, held)

    def give_back(self) -> None:
        """Before its holder leaves: what is in hand has killed nobody, also what was noted as running alone."""
        for offset, received in self.out.items():
            self.ledger.hold(offset, self.ledger.state(offset)._replace(solo=received.solo))

    def next_due(self) -> float | None:
        return self._parked.next_due()

    def _park(self, offset: int, received: Received, held: Held) -> None:
        self.ledger.hold(offset, held._replace(parked=True))
        self.dirty = True
        self._parked.put(Waiting(offset, received, held.due))

    def _once_more(self, waiting: Waiting) -> Received:
        received = msgspec.structs.replace(waiting.received)
        self.out[waiting.tag] = received
        self._unpark(waiting.tag)
        return received

    def _unpark(self, offset: int) -> None:
        self.ledger.hold(offset, self.ledger.state(offset)._replace(parked=False, due=0.0))
        self.dirty = True
