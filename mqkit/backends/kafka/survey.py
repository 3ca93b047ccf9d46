"""Survey: what waits in the topics and what became of it, as far as the commits of the groups tell."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kafka import TopicPartition as Partition
from kafka import errors as native
from kafka.admin import OffsetSpec

from mqkit.backends.base import Address, Depth, Received
from mqkit.backends.kafka import wire
from mqkit.backends.kafka.consumer import Consumer
from mqkit.backends.kafka.control import Control, Positions, partitions_of
from mqkit.backends.kafka.errors import translate
from mqkit.backends.kafka.ledger import Held, Past, past_of
from mqkit.backends.kafka.names import Names
from mqkit.backends.kafka.options import Cluster
from mqkit.errors import NotFound, Unavailable

EXACTLY = 1000  # messages of a source that are counted one by one; of more, offsets are counted
STEP = 0.05  # seconds of one fetch


class Letter(NamedTuple):
    """A dead letter, and the key of its record."""

    key: bytes
    received: Received


class Survey:
    """Made for one look. Reads with a consumer outside of any group."""

    def __init__(self, control: Control, cluster: Cluster, names: Names, now: Callable[[], float]) -> None:
        self._control = control
        self._cluster = cluster
        self._names = names
        self._now = now
        self._topics = control.topics()
        self._hidden: dict[Partition, int] = {}  # how many records are behind the open transaction of a dead process

    def depths(self) -> list[Depth]:
        names = self._names
        sources = sorted(sources_of(filter(None, map(names.address, self._topics))))
        topics = {topic for address in sources for topic in names.sources(address)}
        groups = [names.group(address) for address in sources if not address.dead]
        committed = self._control.committed([*groups, names.relay])
        ends = self._ends([*topics, *names.lanes])
        starts = self._starts(ends)
        with self._reader() as reader:
            later = [to for to, _ in self._delayed(reader, committed[names.relay], ends)]
            return [
                self._depth(reader, address, committed.get(names.group(address), {}), starts, ends, later)
                for address in sources
            ]

    def waiting(self, address: Address) -> list[Received]:
        """What is done by nobody and in no hand, also what waits for its time. Raises `NotFound`."""
        names = self._names
        if names.topic(address) not in self._topics:
            raise NotFound(f"{address} does not exist on {self._cluster}; declare it first")
        if address.dead:
            return [letter.received for letter in self.letters(address)]
        group, sources = names.group(address), names.sources(address)
        committed = self._control.committed([group, names.relay])
        ends = self._ends([*sources, *names.lanes])
        with self._reader() as reader:
            found = []
            for record, past in self._records(reader, sources, committed[group], ends):
                held = past.of(record.offset)
                if held is None or held.parked:
                    found.append(wire.received(address, record, held or Held()))
            delayed = self._delayed(reader, committed[names.relay], ends)
            return found + [received for topic, received in delayed if topic in sources]

    def letters(self, address: Address) -> list[Letter]:
        """Dead letters: the last record of each key, if it is not a tombstone. Raises `NotFound`."""
        topic = self._names.topic(address)
        if topic not in self._topics:
            raise NotFound(f"{address} does not exist on {self._cluster}; declare it first")
        letters: dict[bytes, Any] = {}
        with self._reader() as reader:
            for record, _ in self._records(reader, [topic], {}, self._ends([topic])):
                letters.pop(record.key, None)
                if record.value is not None:
                    letters[record.key] = record
        return [Letter(key, wire.received(address, record, Held())) for key, record in letters.items()]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _depth(
        self,
        reader: Consumer,
        address: Address,
        committed: Positions,
        starts: Mapping[Partition, int],
        ends: Mapping[Partition, int],
        later: Sequence[str],
    ) -> Depth:
        sources = self._names.sources(address)
        delayed = sum(topic in sources for topic in later)
        hidden = 0
        if not address.dead:
            delayed, hidden = delayed + self._hidden_in(self._names.lanes), self._hidden_in(sources)
        if address.kind == "topic" and not address.group:
            return Depth(address, 0, 0, delayed)
        partitions = [place for topic in sources for place in partitions_of(topic, self._topics.get(topic, 0))]
        begins = {
            place: max(starts[place], committed[place].offset if place in committed else 0) for place in partitions
        }
        span = sum(ends[place] - begins[place] for place in partitions)
        if not span:
            return Depth(address, hidden, 0, delayed)
        if address.dead:
            return Depth(address, len(self.letters(address)), 0, 0)
        ready = inflight = parked = 0
        now = self._now()
        if span > EXACTLY:
            for position in committed.values():
                done, held, _ = past_of(position.offset, position.metadata or "")
                span -= sum(last - first + 1 for first, last in done)
                inflight += sum(last - first + 1 for first, last, one in held if not one.parked)
                parked += sum(last - first + 1 for first, last, one in held if one.parked)
            return Depth(address, max(0, span - inflight - parked) + hidden, inflight, parked + delayed)
        for record, past in self._records(reader, sources, committed, ends):
            one = past.of(record.offset)
            if one is None or (one.parked and one.due <= now):
                ready += 1
            else:
                parked, inflight = parked + one.parked, inflight + (not one.parked)
        return Depth(address, ready + hidden, inflight, parked + delayed)

    def _delayed(
        self, reader: Consumer, committed: Positions, ends: Mapping[Partition, int]
    ) -> Iterator[tuple[str, Received]]:
        """What waits on the ladder, with the topic it is for."""
        for record, _ in self._records(reader, list(self._names.lanes), committed, ends):
            to = wire.value_of(record.headers, wire.TO) or ""
            yield to, wire.received(self._names.address(to) or Address("queue", to), record, Held())

    def _ends(self, topics: Iterable[str]) -> dict[Partition, int]:
        places = [place for topic in topics for place in partitions_of(topic, self._topics.get(topic, 0))]
        written = self._control.written(places)
        ends = self._control.ends(written)
        self._hidden.update({place: end - ends[place] for place, end in written.items() if end > ends[place]})
        return ends

    def _hidden_in(self, topics: Iterable[str]) -> int:
        """Nobody can read them yet, and they are there: nothing is empty meanwhile, whatever of it will be void."""
        return sum(count for place, count in self._hidden.items() if place.topic in set(topics))

    def ready(self, address: Address) -> int:
        """How many wait in the topics of one source, in no hand. Raises `NotFound`."""
        names = self._names
        if names.topic(address) not in self._topics:
            raise NotFound(f"{address} does not exist on {self._cluster}; declare it first")
        group = names.group(address)
        committed = self._control.committed([group])
        ends = self._ends(names.sources(address))
        with self._reader() as reader:
            depth = self._depth(reader, address, committed[group], self._starts(ends), ends, ())
        return depth.ready + depth.delayed - self._hidden_in(names.sources(address))

    def _starts(self, ends: Mapping[Partition, int]) -> dict[Partition, int]:
        return self._control.offsets(ends, OffsetSpec.EARLIEST)

    def _records(
        self, reader: Consumer, topics: Sequence[str], committed: Positions, ends: Mapping[Partition, int]
    ) -> Iterator[tuple[Any, Past]]:
        """From the commits to the ends, without what is done above them, each with what is known of its partition."""
        try:
            yield from self._read(reader, topics, committed, ends)
        except native.KafkaError as exc:
            raise translate(exc, self._cluster) from exc

    def _read(
        self, reader: Consumer, topics: Sequence[str], committed: Positions, ends: Mapping[Partition, int]
    ) -> Iterator[tuple[Any, Past]]:
        left: set[Partition] = set()
        pasts: dict[Partition, Past] = {}
        starts: dict[Partition, int] = {}
        for place in (place for topic in topics for place in partitions_of(topic, self._topics.get(topic, 0))):
            position = committed.get(place)
            starts[place] = position.offset if position is not None else 0
            pasts[place] = past_of(position.offset, position.metadata or "") if position else Past([], [])
            if starts[place] < ends[place]:
                left.add(place)
        if not left:
            return
        reader.driver.assign(sorted(left))
        for place in left:
            reader.begin(place, starts[place])
        patience = self._cluster.options.patience
        deadline = time.monotonic() + patience
        while left:
            for place, records in reader.fetch(STEP).items():
                deadline = time.monotonic() + patience
                for record in records:
                    if record.offset < ends[place] and not pasts[place].is_done(record.offset):
                        yield record, pasts[place]
            if damaged := left.intersection(reader.damaged):
                raise Unavailable(
                    f"{self._cluster} has a damaged batch in {', '.join(sorted({one.topic for one in damaged}))}"
                )
            # Behind the last record may be nothing but the marks of transactions.
            left = {place for place in left if (reader.position(place) or 0) < ends[place]}
            if time.monotonic() > deadline:
                raise Unavailable(f"{self._cluster} does not hand out {', '.join(topics)} to the end")

    @contextlib.contextmanager
    def _reader(self) -> Iterator[Consumer]:
        consumer = Consumer(self._cluster, fetch_bytes=1 << 20, group_id=None, fetch_max_wait_ms=20)
        try:
            yield consumer
        finally:
            consumer.close()


def sources_of(found: Iterable[Address]) -> set[Address]:
    """What is consumed, of the addresses that topics have, and topics without groups."""
    sources = {address for address in found if address.kind != "broadcast"}
    with_groups = {address.name for address in sources if address.group}
    return {one for one in sources if one.kind == "queue" or one.group or one.name not in with_groups}
