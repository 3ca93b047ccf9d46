"""
Relay: moves delayed messages down the ladder, and out of it when they are due.

Kafka has no delays, so any process that consumes does this for all. A lane is a topic whose records wait equally long, so
nothing waits behind a longer delay. Each hop is one transaction with the commit of where the lane was read to.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kafka import TopicPartition as Partition
from kafka.structs import OffsetAndMetadata

from mqkit.backends.kafka import wire
from mqkit.backends.kafka.member import Member
from mqkit.backends.kafka.names import Names, lane_for
from mqkit.backends.kafka.producer import Transactions
from mqkit.backends.kafka.record import ProducerRecord, tail_of
from mqkit.backends.kafka.trim import Trimmer
from mqkit.errors import MqkitError, NotFound, Unavailable

log = logging.getLogger("mqkit")

AT_ONCE = 500  # records of one transaction
AHEAD = 2000  # records of a lane that are kept here, about
ABSENT = 30.0  # seconds for which a queue must be missing until what waits for it is let go
AGAIN = 1.0  # seconds after a failure
QUIET = 10.0  # seconds between two words about failures
PUT_OFF = 60.0  # seconds until a record that its topic refuses is tried again

_Waiting = tuple[Partition, Any]  # a record of a lane


class Relay:
    """
    One per bus. Whichever of its receivers comes along steps it, one at a time; without any it leaves the work to others.
    """

    def __init__(
        self,
        join: Callable[[], Member],
        transactions: Transactions,
        trimmer: Trimmer,
        names: Names,
        now: Callable[[], float],
    ) -> None:
        self._join = join
        self._transactions = transactions
        self._trimmer = trimmer
        self._names = names
        self._now = now
        self._member: Member | None = None
        self._fresh: set[Partition] = set()  # ours, and not known yet where others left off
        self._lanes: dict[Partition, deque[Any]] = {}
        self._moved: dict[Partition, int] = {}  # up to where each lane is done
        self._paused: set[Partition] = set()
        self._absent: dict[str, float] = {}  # topics that records want to go to, and since when they are not there
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._soonest = math.inf  # when a record is ready to move; not while that is being done
        self._not_before = 0.0
        self._receivers = 0
        self._said = -math.inf

    def step(self) -> None:
        """What is to be done now. Never raises: what it cannot do now is done later, here or in another process."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            if time.monotonic() < self._not_before:
                return
            self._soonest = math.inf
            self._serve()
            self._soonest = self._next_ready()
        except MqkitError as exc:
            if time.monotonic() - self._said > QUIET:
                self._said = time.monotonic()
                log.warning("delayed.failed", extra={"error": str(exc)})
            self._start_over()
        except Exception:  # others' messages must not end this consumer
            log.exception("delayed.failed")
            self._start_over()
        finally:
            self._lock.release()

    def patience(self) -> float:
        """Seconds until it should be stepped again. Any thread."""
        return max(0.0, self._soonest - self._now())

    def enter(self) -> None:
        """Another receiver, which will step it. Does not wait for what another one has it do now."""
        with self._counting:
            self._receivers += 1

    def leave(self) -> None:
        """One receiver less."""
        with self._lock:
            with self._counting:
                self._receivers -= 1
                last = not self._receivers
            if last:
                self._start_over()
                self._not_before = 0.0
                self._transactions.close()

    def _serve(self) -> None:
        if self._member is None:
            self._member = self._join()
        member = self._member
        member.step()
        for change in member.heard():
            if change.kind == "assigned":
                self._fresh |= change.partitions
            else:
                self._drop(change.partitions)
        if leaving := member.leaving:
            self._drop(leaving)
            member.let_go(leaving)
        if self._fresh and member.joined and (positions := member.committed(self._fresh)) is not None:
            self._fresh = set()
            for partition, position in positions.items():
                self._lanes[partition] = deque()
                member.begin(partition, position.offset if position is not None else 0)
        for partition, records in member.fetch().items():
            lane = self._lanes.get(partition)
            if lane is not None:
                lane.extend(records)
                if len(lane) > AHEAD and partition not in self._paused:
                    self._paused.add(partition)
                    member.pause([partition])
        if ready := self._ready(self._now()):
            self._move(member, ready)
        self._trimmer.trim(self._names.relay, lambda: self._moved)

    def _drop(self, partitions: Iterable[Partition]) -> None:
        self._fresh -= set(partitions)
        for partition in partitions:
            self._lanes.pop(partition, None)
            self._moved.pop(partition, None)
            self._paused.discard(partition)

    def _ready(self, now: float) -> list[_Waiting]:
        """What may move, at most as much as one transaction takes; of each lane from its beginning."""
        ready: list[_Waiting] = []
        for partition, lane in self._lanes.items():
            for record in lane:
                if len(ready) >= AT_ONCE or self._ready_at(partition.topic, record) > now:
                    break
                ready.append((partition, record))
        return ready

    def _move(self, member: Member, ready: Sequence[_Waiting]) -> None:
        """One that its topic refuses waits on: it is not lost, and keeps nothing else waiting."""
        try:
            self._hop(member, ready)
        except (Unavailable, NotFound):
            raise
        except MqkitError as exc:
            if len(ready) > 1:  # which of them is refused is not said
                middle = len(ready) // 2
                self._move(member, ready[:middle])
                self._move(member, ready[middle:])
                return
            self._hop(member, ready, put_off=True)
            log.warning("delayed.refused", extra={"topic": wire.hop_of(ready[0][1].headers).to, "error": str(exc)})

    def _hop(self, member: Member, ready: Sequence[_Waiting], *, put_off: bool = False) -> None:
        """All of them in one transaction. Raises as that."""
        now, gone = self._now(), set[str]()
        if put_off:
            records = [self._put_off(record, now) for _, record in ready]
        else:
            hops = [wire.hop_of(record.headers) for _, record in ready]
            gone = self._gone({hop.to for hop in hops if hop.to and hop.due <= now})
            records = [found for _, record in ready if (found := self._next_hop(record, now)) is not None]
        self._transactions.carry_out(
            [record for record in records if record.topic not in gone],
            {partition: OffsetAndMetadata(record.offset + 1, "", -1) for partition, record in ready},
            member.metadata,
        )
        for partition, record in ready:
            lane = self._lanes[partition]
            lane.popleft()
            self._moved[partition] = record.offset + 1
            if partition in self._paused and len(lane) < AHEAD // 2:
                self._paused.discard(partition)
                member.resume([partition])

    def _gone(self, topics: set[str]) -> set[str]:
        """Those of queues that were deleted, long enough ago to be certain: what waits for one would keep all others waiting."""
        now = time.monotonic()
        missing = [topic for topic in topics if not self._transactions.knows(topic)]
        self._absent = {topic: self._absent.get(topic, now) for topic in missing}
        gone = {topic for topic, since in self._absent.items() if now - since > ABSENT}
        if gone:
            log.warning("delayed.dropped", extra={"topics": sorted(gone)})
        return gone

    def _next_ready(self) -> float:
        heads = ((partition.topic, lane[0]) for partition, lane in self._lanes.items() if lane)
        return min((self._ready_at(topic, record) for topic, record in heads), default=math.inf)

    def _ready_at(self, lane: str, record: Any) -> float:
        seconds: float = record.timestamp / 1000 + self._names.lanes[lane]
        return min(wire.hop_of(record.headers).due, seconds)

    def _next_hop(self, record: Any, now: float) -> ProducerRecord | None:
        """Onto the next lane, or where it is to go; None: nowhere, so it is none of ours."""
        hop = wire.hop_of(record.headers)
        if hop.due > now:
            tail = tail_of(wire.without(record.headers))
            return ProducerRecord(self._names.lane(lane_for(hop.due - now)), record.key, record.value, tail)
        if not hop.to:
            log.warning("delayed.unreadable", extra={"topic": record.topic, "offset": record.offset})
            return None
        # Its topic may have been made again with less.
        partition = hop.partition if hop.partition in self._transactions.partitions(hop.to) else None
        tail = tail_of(wire.without(record.headers, *wire.LADDER))
        return ProducerRecord(hop.to, record.key, record.value, tail, partition)

    def _put_off(self, record: Any, now: float) -> ProducerRecord:
        headers = [*wire.without(record.headers, wire.DUE), (wire.DUE, repr(now + PUT_OFF).encode())]
        return ProducerRecord(self._names.lane(lane_for(PUT_OFF)), record.key, record.value, tail_of(headers))

    def _start_over(self) -> None:
        self._not_before = time.monotonic() + AGAIN
        self._fresh.clear()
        self._lanes.clear()
        self._moved.clear()
        self._paused.clear()
        if self._member is not None:
            self._member.close()
            self._member = None
