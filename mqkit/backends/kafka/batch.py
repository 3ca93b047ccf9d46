"""
Batch: the records that travel together, decoded at once.

The driver decodes record by record, which costs more than all the rest of consuming. Its fetcher goes on doing everything
else: it asks, checks sums, leaves out what transactions took back, and keeps the position. It is given one record for each
batch, whose value are the records of the batch.

Names of the driver used here: `Fetcher._parse_fetched_data`, `PartitionRecords`, its `take` and `drain`, `MemoryRecords.next_batch`,
`DefaultRecordBatch`, its `HEADER_STRUCT`, `_buffer`, `_pos` and `_maybe_uncompress`, `DefaultRecord`. Where they do not do
what they did, the driver decodes; where one that is imported or inherited from is gone, this module is of no use.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from kafka import TopicPartition as Partition
from kafka import errors as native
from kafka.consumer.fetcher import Fetcher
from kafka.record.default_records import DefaultRecord, DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from mqkit.backends.kafka.record import Record, decode

log = logging.getLogger("mqkit")


class Damage:
    """Comes last of what was fetched of a partition, and means: what is next cannot be read."""

    value: ClassVar[list[Any]] = []  # as of a batch, see `records_in`

    def __init__(self, error: Exception) -> None:
        self.error = error


def records_in(fetched: Iterable[Any]) -> list[Any]:
    """What the driver has fetched of one partition, in order: one by one where it has decoded itself."""
    records: list[Any] = []
    for one in fetched:
        if one.value.__class__ is list:
            records += one.value
        else:
            records.append(one)
    return records


def decode_with(fetcher: Any) -> None:
    """Let a fetcher of the driver decode like this; then each `value` may be a list, see `records_in`."""
    fetcher.PartitionRecords = decoder()
    fetcher._parse_fetched_data = _guarded(fetcher._parse_fetched_data)


def _guarded(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def guarded(fetched: Any) -> Any:
        try:
            return parse(fetched)
        except native.KafkaError as exc:
            # A broker has found the damage; or the length of a batch is damaged, which the driver has no error of its own for.
            if type(exc) not in (native.CorruptRecordError, native.KafkaError):
                raise
            return _Fetched(fetched.fetched_offset, fetched.topic_partition, _Unreadable(exc))

    return guarded


class _Unreadable:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def next_batch(self) -> Any:
        raise native.CorruptRecordError(str(self._error)) from self._error


def decoder() -> type[Any]:
    return _Whole if _understood() else _Fetched


@functools.cache
def _understood() -> bool:
    """Do we find in a batch what the driver finds in it?"""
    error = "it finds something else in a batch"
    try:
        builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 1 << 16)
        for offset, (key, value) in enumerate([(None, b"body"), (b"key", None), (b"", b"long" * 100)]):
            builder.append(offset, 1_700_000_000_000 - offset, key, value, [("name", value), ("empty", b"")] * offset)
        data, place = bytes(builder.build()), Partition("topic", 1)
        theirs = Fetcher.PartitionRecords(1, place, MemoryRecords(data)).take()
        ours: list[Record] = records_in(Fetcher.PartitionRecords.take(_Whole(1, place, MemoryRecords(data))))
        if ours and list(map(_content, ours)) == list(map(_content, theirs)):
            return True
    except Exception as exc:  # noqa: BLE001  whatever has become of the names we use
        error = repr(exc)
    log.warning("driver.changed", extra={"driver": "kafka-python", "error": error})
    return False


def _content(record: Any) -> tuple[Any, ...]:
    return record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, record.headers


class _Fetched(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What one fetch has brought of one partition. The position stays before what cannot be read."""

    def take(self, n: int | None = None) -> Any:
        try:
            return super().take(n)
        except Exception as exc:
            self.drain()  # else the fetcher turns round it for ever: nothing comes out of it, and it does not look empty
            if isinstance(exc, native.KafkaError) and not isinstance(exc, native.CorruptRecordError):
                raise  # it is this process that cannot read it
            return [Damage(exc)]


class _Whole(_Fetched):
    """What one fetch has brought of one partition, batch by batch."""

    def __init__(self, offset: int, partition: Partition, records: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(offset, partition, _Batches(records, partition, offset), *arguments, **named)


class _Batches:
    def __init__(self, records: Any, partition: Partition, first: int) -> None:
        self._records = records
        self._partition = partition
        self._first = first  # earlier ones were not asked for: a broker gives whole batches

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if batch.__class__ is DefaultRecordBatch:
            return _Batch(batch._buffer, self._partition, self._first)
        return batch  # of a format that no producer has written for years, or none


class _Batch(DefaultRecordBatch):  # type: ignore[misc]
    __slots__ = ("_first", "_partition")

    def __init__(self, buffer: Any, partition: Partition, first: int) -> None:
        super().__init__(memoryview(buffer)[: self.HEADER_STRUCT.size])  # else it copies all of it
        self._buffer = buffer  # type: ignore[misc]  # a slot of the base
        self._partition = partition
        self._first = first

    def __iter__(self) -> Iterator[Any]:
        self._maybe_uncompress()
        records = decode(bytes(self._buffer), self._pos, self, self._partition)
        if records and records[0].offset < self._first:
            records = [record for record in records if record.offset >= self._first]
        if records:
            yield DefaultRecord(self.size_in_bytes, self.last_offset, 0, 0, None, records, ())
