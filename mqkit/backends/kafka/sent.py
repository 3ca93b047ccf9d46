"""
Sent: a record that the driver has, and how it gets there without a future of its own.

The driver makes a future, a lock and two lists for each record, answers each by itself, and writes it byte by byte; that is
half of what publishing costs. What has become of a batch says what has become of its records, and `encode` writes one at once.

Names of the driver used here: `RecordAccumulator._tp_lock` and `_batches`; `ProducerBatch.records`, `produce_future`,
`max_record_size`, `last_append` and `_record_futures`, upon whose members it calls `rebind`; of the records `_builder`,
`_closed` and `_next_offset`; of their builder `_buffer`, `_batch_size`, `_first_timestamp`, `_max_timestamp`, `_last_offset`
and `_num_records`; `_produce_future`, its `_latch` and `args` of a future. Where they are not what they were, records join in
the driver's own way.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from kafka import TopicPartition as Partition
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.memory_records import MemoryRecordsBuilder

from mqkit.backends.kafka.errors import GivenUp
from mqkit.backends.kafka.record import ProducerRecord, encode, encode_number, tail_of

EPOCH = 1_700_000_000_000  # milliseconds

log = logging.getLogger("mqkit")

Ring = Callable[[Any], object]
Appender = Callable[[Any, Partition, ProducerRecord, Ring], "Sent | First"]

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
        Of an accumulator, a place, a record and a ring: what was sent. The sender's thread is not told.
    """
    return _join if _understood() else _begin


def _join(accumulator: Any, place: Partition, record: ProducerRecord, ring: Ring) -> Sent | First:
    with accumulator._tp_lock(place):
        if batches := accumulator._batches[place]:
            batch = batches[-1]
            records = batch.records
            index = records._next_offset
            if size := _put(records, record, int(time.time() * 1000)):
                if size > batch.max_record_size:
                    batch.max_record_size = size
                batch.last_append = time.monotonic()
                sent = Sent(batch.produce_future, index, ring)
                batch._record_futures.append(sent)
                return sent
    return _begin(accumulator, place, record, ring)


def _put(records: Any, record: ProducerRecord, moment: int) -> int:
    """
    Into those of a batch that has some. What the driver writes byte by byte is encoded at once.

    Args:
        moment: Milliseconds since the epoch.

    Returns:
        Its bytes; 0: there is no room for it, or the batch is under way.
    """
    if records._closed:
        return 0
    builder, ahead = records._builder, records._next_offset
    data = encode(record, moment - builder._first_timestamp, ahead)
    length = encode_number(len(data))
    buffer, size = builder._buffer, len(length) + len(data)
    if len(buffer) + size > builder._batch_size:
        return 0
    buffer += length
    buffer += data
    if moment > builder._max_timestamp:
        builder._max_timestamp = moment
    builder._last_offset = ahead
    builder._num_records += 1
    records._next_offset = ahead + 1
    return size


def _begin(accumulator: Any, place: Partition, record: ProducerRecord, ring: Ring) -> First:
    future, _, _, _ = accumulator.append(place, None, record.key, record.value, record.headers)
    future.add_both(ring)
    return First(future)


@functools.cache
def _understood() -> bool:
    """Does one that joins leave a batch as the driver's own way does?"""
    place = Partition("topic", 0)
    records = [
        ProducerRecord("topic", key, value, tail_of(headers))
        for key, value, headers in (
            (b"key", b"body", [("name", b"value")]),
            (None, b"long" * 1000, [("mq-id", b"x" * 64), ("\N{LATIN SMALL LETTER E WITH ACUTE}" * 50, b"")]),
            (b"", None, []),
        )
    ]
    error = "a record that joins a batch leaves it in another state"
    try:
        ours, theirs = (RecordAccumulator(message_version=2, delivery_timeout_ms=60_000) for _ in range(2))
        for accumulator in (ours, theirs):
            _begin(accumulator, place, records[0], id)
        one = _join(ours, place, records[0], id)
        other = _begin(theirs, place, records[0], id)
        [mine], [its] = ours._batches[place], theirs._batches[place]
        same = isinstance(one, Sent) and _state(mine) == _state(its) and one.index == other.future.args[0]
        waits = not one.is_done and not other.is_done
        for batch in (mine, its):
            batch.complete(0, -1)
        answered = one.is_done and other.is_done and one.exception is None
        if same and waits and answered and _written(_put, records) == _written(_appended, records):
            return True
    except Exception as exc:  # noqa: BLE001  whatever has become of the names we use
        error = repr(exc)
    log.warning("driver.changed", extra={"driver": "kafka-python", "error": error})
    return False


def _state(batch: Any) -> dict[str, Any]:
    state = {name: value for name, value in vars(batch).items() if name not in _OF_APPENDING}
    return state | {"records": batch.record_count, "futures": len(batch._record_futures)}


def _written(put: Callable[[Any, ProducerRecord, int], int], records: Sequence[ProducerRecord]) -> tuple[Any, ...]:
    """What becomes of these, later and earlier than the first of their batch, until it is full and when it is under way."""
    builder = MemoryRecordsBuilder(2, 0, 1 << 14)
    _appended(builder, ProducerRecord("topic", None, None, tail_of([])), EPOCH)
    sizes = [put(builder, record, EPOCH + age) for age in (0, 1, -70, 1 << 20) for record in records]
    next_offset, size = builder.next_offset(), builder.size_in_bytes()
    builder.close()
    return [*sizes, put(builder, records[0], EPOCH)], next_offset, size, bytes(builder.buffer())


def _appended(builder: Any, record: ProducerRecord, moment: int) -> int:
    """As `_put`, by the driver."""
    added = builder.append(moment, record.key, record.value, record.headers)
    return 0 if added is None else int(added.size)
