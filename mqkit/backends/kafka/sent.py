"""
Sent: a record that the driver has, and how it gets there without a future of its own.

The driver makes a future, a lock and two lists for each record, and answers each by itself; that is a quarter of what
publishing costs. What has become of a batch says what has become of its records.

Names of the driver used here: `RecordAccumulator._tp_lock` and `_batches`, `ProducerBatch.records`, `produce_future`,
`max_record_size`, `last_append` and `_record_futures`, upon whose members it calls `rebind`; `_produce_future`, its `_latch`
and `args` of a future. Where they are not what they were, records join in the driver's own way.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
from kafka import TopicPartition as Partition
from kafka.producer.record_accumulator import RecordAccumulator

from mqkit.backends.kafka.errors import GivenUp
from mqkit.backends.kafka.record import ProducerRecord

log = logging.getLogger("mqkit")

Ring = Callable[[Any], object]
Appender = Callable[[Any, Partition, ProducerRecord, Ring], "tuple[Sent | First, bool]"]

_OF_APPENDING = {
    "records",
    "produce_future",
    "_record_futures",
    "created",
    "last_append",
    "last_attempt",
    "max_record_size",
}


class Sent(msgspec.Struct):
    """
    Answered as a future of the driver is, but for callbacks.

    Attributes:
        ring: Is called with anything once the whole batch is answered, on the driver's thread.
    """

    produce: Any  # the future of its batch
    index: int
    ring: Ring

    @property
    def is_done(self) -> bool:
        return bool(self.produce.is_done)

    @property
    def exception(self) -> BaseException | None:
        """Of one that is done."""
        return _failure(self.produce, self.index)

    def rebind(self, produce: Any, index: int) -> None:
        """By the driver, which has split a batch that is too large."""
        split, self.produce, self.index = self.produce, produce, index
        produce.add_both(self.ring)
        split._latch.set()  # who waits for it has to wait for its parts


class First(msgspec.Struct):
    """The one that began a batch, or joined it in the driver's own way; answered as `Sent`."""

    future: Any

    @property
    def is_done(self) -> bool:
        return bool(self.future.is_done)

    @property
    def exception(self) -> BaseException | None:
        future = self.future
        failure: BaseException | None = future.exception
        return _failure(future._produce_future, future.args[0]) if failure is not None and _understood() else failure


def _failure(produce: Any, index: int) -> BaseException | None:
    """Of a record of a batch that is done."""
    failure: BaseException | None = produce.exception
    if failure is None:
        base, _, failures = produce.value
        if failures is not None:
            failure = failures(index)
            if base == -1:  # it was not refused itself
                return GivenUp(failure)
    return failure


def appender() -> Appender:
    """
    Onto a batch. Only one thread may append.

    Returns:
        Of an accumulator, a place, a record and a ring: what was sent; and whether there is a batch that the sender could take.
    """
    return _join if _understood() else _begin


def _join(accumulator: Any, place: Partition, record: ProducerRecord, ring: Ring) -> tuple[Sent | First, bool]:
    with accumulator._tp_lock(place):
        if batches := accumulator._batches[place]:
            batch = batches[-1]
            added = batch.records.append(None, record.key, record.value, record.headers)
            if added is not None:
                batch.max_record_size = max(batch.max_record_size, added.size)
                batch.last_append = time.monotonic()
                sent = Sent(batch.produce_future, added.offset, ring)
                batch._record_futures.append(sent)
                return sent, len(batches) > 1 or batch.records.is_full()
    return _begin(accumulator, place, record, ring)


def _begin(accumulator: Any, place: Partition, record: ProducerRecord, ring: Ring) -> tuple[First, bool]:
    future, _, _, _ = accumulator.append(place, None, record.key, record.value, record.headers)
    future.add_both(ring)
    return First(future), True


@functools.cache
def _understood() -> bool:
    """Does one that joins leave a batch as the driver's own way does?"""
    place, record = Partition("topic", 0), ProducerRecord("topic", b"key", b"body", [("name", b"value")])
    error = "a record that joins a batch leaves it in another state"
    try:
        ours, theirs = (RecordAccumulator(message_version=2, delivery_timeout_ms=60_000) for _ in range(2))
        for accumulator in (ours, theirs):
            _begin(accumulator, place, record, id)
        one, _ = _join(ours, place, record, id)
        other, _ = _begin(theirs, place, record, id)
        [mine], [its] = ours._batches[place], theirs._batches[place]
        same = isinstance(one, Sent) and _state(mine) == _state(its) and one.index == other.future.args[0]
        waits = not one.is_done and not other.is_done
        for batch in (mine, its):
            batch.complete(0, -1)
        if same and waits and one.is_done and other.is_done and one.exception is None:
            return True
    except Exception as exc:  # noqa: BLE001  whatever has become of the names we use
        error = repr(exc)
    log.warning("driver.changed", extra={"driver": "kafka-python", "error": error})
    return False


def _state(batch: Any) -> dict[str, Any]:
    state = {name: value for name, value in vars(batch).items() if name not in _OF_APPENDING}
    return state | {"records": batch.record_count, "futures": len(batch._record_futures)}
