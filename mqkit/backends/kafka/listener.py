"""Listening to a broadcast: from its end, without a group."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kafka import TopicPartition as Partition
from kafka import errors as native

from mqkit.backends.base import Address, Received, Settlement, Turn
from mqkit.backends.kafka import wire
from mqkit.backends.kafka.consumer import Consumer
from mqkit.backends.kafka.ledger import Held
from mqkit.errors import Lost, NotFound

AHEAD = 10_000  # messages a listener may lag behind before it forgets the oldest
LONGEST = 0.1  # seconds of one wait
LOOK = 10.0  # seconds between two looks whether the topic is still there

_handles = itertools.count(1)


class KafkaListener:
    """See `base.Receiver`, of a broadcast: at most once, nothing to settle. Hears from the moment it is made."""

    def __init__(self, consumer: Consumer, address: Address, topic: str, now: Callable[[], float]) -> None:
        self.now = now
        self._consumer = consumer
        self._address = address
        self._topic = topic
        self._inbox: deque[Any] = deque(maxlen=AHEAD)
        self._looked = time.monotonic()
        driver = consumer.driver
        try:
            numbers = consumer.learn([topic]).get(topic)
            if not numbers:
                raise NotFound(f"{address} does not exist on {consumer.cluster}; declare it first")
            partitions = [Partition(topic, number) for number in numbers]
            driver.assign(partitions)
            for partition, end in driver.end_offsets(partitions).items():
                consumer.begin(partition, end)
        except native.KafkaError as exc:
            raise consumer.failure(exc) from exc

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Broadcasts are not settled."""

    def receive(self, room: int, timeout: float) -> Turn:
        deadline = time.monotonic() + timeout
        self._look()
        while True:
            for records in self._consumer.fetch().values():
                self._inbox.extend(records)
            left = deadline - time.monotonic()
            if (room and self._inbox) or left <= 0 or self._consumer.wait(min(left, LONGEST)):
                break
        taken: list[Received] = []
        while self._inbox and len(taken) < room:
            received = wire.received(self._address, self._inbox.popleft(), Held())
            received.handle = next(_handles)
            taken.append(received)
        return Turn(taken)

    def isolate(self, delivery: Received) -> None:
        """A broadcast is never handed out twice."""

    def flush(self, timeout: float) -> Turn:
        del timeout
        return Turn()

    def wake(self) -> None:
        self._consumer.wake()

    def close(self) -> None:
        self._consumer.close()

    def _look(self) -> None:
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            if not self._consumer.learn([self._topic]):
                raise Lost(f"{self._address} was deleted")
