"""
Sent: a record that the driver has, and how it gets there without a future of its own.

The driver makes a future, a lock and two lists for each record, and answers each by itself; that is a quarter of what
publishing costs. What has become of a batch says what has become of its records.

Names of the driver used here: `RecordAccumulator._tp_lock` and `_batches`, `ProducerBatch.records`, `produce_future`,
`max_record_size`, `last_append` and `_record_futures`, upon whose members it calls `rebind`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from kafka import TopicPartition as Partition

from mqkit.backends.kafka.record import ProducerRecord


class Sent(msgspec.Struct):
    """
    Answered as a future of the driver is, but for callbacks.

    Attributes:
        ring: Is called with anything once the whole batch is answered, on the driver's thread.
    """

    produce: Any  # the future of its batch
    index: int
    ring: Callable[[Any], object]

    @property
    def is_done(self) -> bool:
        return bool(self.produce.is_done)

    @property
    def exception(self) -> BaseException | None:
        """Of one that is done."""
        produce = self.produce
        failure: BaseException | None = produce.exception
        if failure is None and (failures := produce.value[2]) is not None:
            failure = failures(self.index)
        return failure

    def rebind(self, produce: Any, index: int) -> None:
        """By the driver, which has split a batch that is too large."""
        self.produce, self.index = produce, index
        produce.add_both(self.ring)


def append(
    accumulator: Any, place: Partition, record: ProducerRecord, ring: Callable[[Any], object]
) -> tuple[Any, bool]:
    """
    Only one thread may append.

    Returns:
        A `Sent`, or the driver's future of the first one of a batch; and whether there is a batch that the sender could take.
    """
    key, value, headers = record.key, record.value, record.headers
    with accumulator._tp_lock(place):
        if batches := accumulator._batches[place]:
            batch = batches[-1]
            added = batch.records.append(None, key, value, headers)
            if added is not None:
                batch.max_record_size = max(batch.max_record_size, added.size)
                batch.last_append = time.monotonic()
                sent = Sent(batch.produce_future, added.offset, ring)
                batch._record_futures.append(sent)
                return sent, len(batches) > 1 or batch.records.is_full()
    future, _, _, _ = accumulator.append(place, None, key, value, headers)
    future.add_both(ring)
    return future, True
