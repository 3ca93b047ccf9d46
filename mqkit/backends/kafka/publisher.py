"""Publishing: idempotent, confirmed by all replicas in step, in batches that the driver makes."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import TopicPartition as Partition

from mqkit._signal import Signal
from mqkit.backends.base import Address, Outcome, Outgoing
from mqkit.backends.kafka import wire
from mqkit.backends.kafka.errors import GivenUp, publish_error
from mqkit.backends.kafka.names import Names, lane_for
from mqkit.backends.kafka.producer import Producer
from mqkit.backends.kafka.record import ProducerRecord, tail_of
from mqkit.errors import Closed, ConfigError, Lost, MqkitError, NotFound, PublishFailed, PublishUnknown

STALLED = 1.0  # seconds without any answer after which it is asked whether the topic is still there


class KafkaPublisher:
    """
    See `base.Publisher`. Confirms arrive on the driver's I/O thread, which only rings: what lies in a line, one for each
    partition, is answered in its order.
    """

    def __init__(self, producer: Producer, names: Names, now: Callable[[], float]) -> None:
        self._producer = producer
        self._names = names
        self._now = now
        self._topics: dict[Address, str] = {}
        self._outcomes: list[Outcome] = []
        self._lines: dict[Partition, deque[tuple[Any, Outgoing]]] = {}  # what `append` has given
        self._places: dict[str, list[Partition]] = {}  # of each topic, as it is now
        self._turn = 0
        self._changed = Signal()
        self._heard = time.monotonic()
        self._question: tuple[str, Any] | None = None
        self._late: list[Outgoing] = []  # for a producer that sends nothing any more

    @property
    def blocked(self) -> str | None:
        return None

    def submit(self, batch: Sequence[Outgoing]) -> None:
        if self._late or self._producer.spoilt:
            self._late += batch
            self._changed.set()
            return
        try:
            self._producer.check_usable()
        except Closed as exc:
            self._outcomes += [(message.token, exc) for message in batch]
            return
        now = self._now()
        self._places.clear()  # a topic may have more by now
        for message in batch:
            try:
                record = self._record(message, now)
                place = self._place(record)
                sent = self._producer.append(record, place, self._ring)
            except MqkitError as exc:
                self._topics.pop(message.address, None)  # it may be gone, and made again until the next try
                self._outcomes.append((message.token, exc))
                continue
            line = self._lines.get(place)
            if line is None:
                line = self._lines[place] = deque()
            line.append((sent, message))
        self._producer.send_appended()

    def collect(self, timeout: float) -> Sequence[Outcome]:
        spoilt = bool(self._late) or self._producer.spoilt
        self._changed.wait(timeout if not self._outcomes and not spoilt else 0.0)
        self._gather()
        outcomes, self._outcomes = self._outcomes, []
        if outcomes or not self._lines:
            self._heard, self._question = time.monotonic(), None
        elif time.monotonic() - self._heard > STALLED:
            self._look_for_its_topic()
        if spoilt and not outcomes:
            raise Lost(
                f"{self._producer.cluster} has refused a message for good, or not answered for too long; a producer begins anew"
            )
        return outcomes

    def wake(self) -> None:
        self._changed.set()

    def abandon(self) -> Sequence[Outcome]:
        self._gather()
        lines, self._lines = self._lines, {}
        unknown = PublishUnknown("sent or not, nobody knows; publish again with the same id")
        unsent = PublishFailed("not sent, because of what became of an earlier one; publish again")
        return [
            *self._outcomes,
            *[(message.token, unknown) for line in lines.values() for _, message in line],
            *[(message.token, unsent) for message in self._late],
        ]

    def close(self) -> None:
        self._producer.close(1.0)

    def _look_for_its_topic(self) -> None:
        """The driver goes on trying to reach one that was deleted. Raises `Lost`, upon which it is declared again."""
        if self._question is not None and not self._question[1].is_done:
            return
        if self._question is not None:
            topic, answer = self._question
            self._heard, self._question = time.monotonic(), None
            if answer.exception is None and not self._producer.partitions(topic):
                raise Lost(f"{self._producer.cluster} does not have {topic} any more")
            return
        topic, _ = next(iter(self._lines))
        self._question = (topic, self._producer.ask_for([topic]))

    def _record(self, message: Outgoing, now: float) -> ProducerRecord:
        """Raises `NotFound`."""
        topic = self._topics.get(message.address)
        if topic is None:
            topic = self._names.topic(message.address)
            if not self._producer.knows(topic):
                raise NotFound(f"{message.address} does not exist on {self._producer.cluster}; declare it")
            self._topics[message.address] = topic
        record = record_of(message, topic, self._names, now)
        if message.delay > 0 and not self._producer.knows(record.topic):
            raise NotFound(f"{record.topic} does not exist on {self._producer.cluster}; declare {message.address}")
        if message.native is not None:
            numbers = self._producer.partitions(topic)
            if message.native.number not in numbers:
                raise ConfigError(
                    f"{message.address} has partitions 0 to {len(numbers) - 1}, and {message.native!r} is none of them"
                )
            if message.delay <= 0:
                record.partition = message.native.number
        return record

    def _place(self, record: ProducerRecord) -> Partition:
        """Raises `NotFound`."""
        if record.partition is not None:
            return Partition(record.topic, record.partition)
        if record.key is not None:
            return Partition(record.topic, self._producer.partition_for(record.topic, record.key))
        # The driver would fill one partition after the other, and a burst would keep one process busy.
        places = self._places.get(record.topic)
        if places is None:
            numbers = self._producer.partitions(record.topic)
            places = self._places[record.topic] = [Partition(record.topic, number) for number in numbers]
        if not places:
            raise NotFound(f"{self._producer.cluster} does not have {record.topic} any more; declare it")
        self._turn += 1
        return places[self._turn % len(places)]

    def _gather(self) -> None:
        """What was answered since."""
        for place, line in list(self._lines.items()):
            while line and line[0][0].is_done:
                sent, message = line.popleft()
                failure = sent.exception
                if isinstance(failure, GivenUp) and not self._producer.identified:
                    failure = failure.cause  # nothing was ever sent
                if failure is None:
                    self._outcomes.append((message.token, None))
                else:
                    self._topics.pop(message.address, None)
                    self._outcomes.append((message.token, publish_error(failure, self._producer.cluster)))
            if not line:
                del self._lines[place]

    def _ring(self, _: object) -> None:
        self._changed.set()


def record_of(message: Outgoing, topic: str, names: Names, now: float) -> ProducerRecord:
    """A message as it is written: where it belongs, or at the head of the ladder if it is to wait."""
    headers = wire.headers_of(message, now)
    key = message.key.encode() if message.key is not None else None
    if message.address.dead:
        if message.key is not None:
            headers[wire.KEY] = message.key
        key = f"{message.id}/{uuid.uuid4()}".encode()  # one id may die twice, and each is told apart by its tombstone
    if message.delay > 0:
        headers[wire.DUE], headers[wire.TO] = repr(now + message.delay), topic
        if message.native is not None:
            headers[wire.PARTITION] = str(message.native.number)
        topic = names.lane(lane_for(message.delay))
    return ProducerRecord(topic, key, message.body, tail_of(headers.items()))
