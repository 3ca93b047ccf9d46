"""
Record: one message as Kafka keeps it and as it is written, how it is encoded and how those of a batch are decoded; pure.

Source of the form: https://kafka.apache.org/documentation/#recordbatch
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from kafka import TopicPartition as Partition
from kafka import errors as native

KNOWN = 1000  # header names that are kept, as text and as they travel
LONGEST = 64  # bytes of one that is kept
SMALL = 4096  # numbers below are kept as they travel
BITS = 63  # that a number may have behind its first byte


class ProducerRecord(msgspec.Struct, gc=False):
    """One that is to be written."""

    topic: str
    key: bytes | None
    value: bytes | None
    tail: bytes  # headers as they travel, see `tail_of`
    partition: int | None = None

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        return _headers(self.tail)


class Record(msgspec.Struct, gc=False):
    """As the driver's `ConsumerRecord`, without what nobody reads."""

    topic: str
    partition: int
    offset: int
    timestamp: int  # milliseconds since the epoch
    key: bytes | None
    value: bytes | None
    tail: bytes  # headers as they travel: read when they are wanted, for what waits is looked at by every garbage collection

    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """As far as they can be read: who has written them wrongly is known by his message, not by an error of ours."""
        return _headers(self.tail)


def tail_of(headers: Collection[tuple[str, str | bytes]]) -> bytes:
    """Headers as they travel."""
    numbers, names = _numbers, _prefixed
    parts = [numbers[len(headers)]]
    for name, value in headers:
        raw = value.encode() if isinstance(value, str) else value
        parts += (names[name], numbers[len(raw)], raw)
    return b"".join(parts)


def _headers(tail: bytes) -> list[tuple[str, bytes | None]]:
    names = _names
    headers: list[tuple[str, bytes | None]] = []
    try:
        count, pos = _number(tail, 0)
        for _ in range(count):
            size, pos = (tail[pos] >> 1, pos + 1) if tail[pos] < 128 else _number(tail, pos)
            if size < 0:
                break
            name = names[tail[pos : (pos := pos + size)]]
            size, pos = _number(tail, pos)
            headers.append((name, None if size < 0 else tail[pos : (pos := pos + size)]))
    except IndexError:
        pass
    return headers


def encode(record: ProducerRecord, age: int, ahead: int) -> bytes:
    """
    As it lies in a batch, behind its length.

    Args:
        age: Milliseconds since the first of the batch; less than 0 if the clock was set back.
        ahead: Records of the batch before it.
    """
    numbers, key, value = _numbers, record.key, record.value
    return b"".join(
        (
            b"\0",
            numbers[age],
            numbers[ahead],
            _NULL if key is None else numbers[len(key)],
            key or b"",
            _NULL if value is None else numbers[len(value)],
            value or b"",
            record.tail,
        )
    )


def encode_number(number: int) -> bytes:
    """As it travels: see `_number`."""
    return _numbers[number]


def decode(data: bytes, pos: int, batch: Any, partition: Partition) -> list[Record]:
    """
    Args:
        data: The records of a batch, not compressed, from `pos` to the end.
        batch: The driver's, for what its head says.

    Raises:
        CorruptRecordError: They are something else.
    """
    try:
        records, end = _records(data, pos, batch, partition)
    except IndexError as exc:
        raise native.CorruptRecordError(f"{partition}: the batch at {batch.base_offset} ends within a record") from exc
    if end != len(data):
        raise native.CorruptRecordError(
            f"{partition}: the batch at {batch.base_offset} does not end with its last record"
        )
    return records


def _records(data: bytes, pos: int, batch: Any, partition: Partition) -> tuple[list[Record], int]:
    topic, place = partition
    base, began = batch.base_offset, batch.first_timestamp
    appended = batch.max_timestamp if batch.timestamp_type == batch.LOG_APPEND_TIME else None
    records: list[Record] = []
    for _ in range(batch.records_count):
        size, pos = _number(data, pos)
        end = pos + size
        age, pos = _number(data, pos + 1)  # behind attributes that nobody uses
        ahead, pos = _number(data, pos)
        size, pos = _number(data, pos)
        key = None if size < 0 else data[pos : (pos := pos + size)]
        size, pos = _number(data, pos)
        value = None if size < 0 else data[pos : (pos := pos + size)]
        if not pos < end <= len(data):
            raise native.CorruptRecordError(f"{partition}: the record at {base + ahead} is not as long as it says")
        moment = began + age if appended is None else appended
        records.append(Record(topic, place, base + ahead, moment, key, value, data[pos:end]))
        pos = end
    return records, pos


def _number(data: bytes, pos: int) -> tuple[int, int]:
    """
    A number of variable length, and where it ends: seven bits in each byte, the lowest first, the sign in the last one.

    Raises:
        IndexError: It has no end.
    """
    byte = data[pos]
    pos += 1
    if byte < 128:
        return byte >> 1 ^ -(byte & 1), pos
    number, shift = byte & 127, 7
    while (byte := data[pos]) > 127:
        number |= (byte & 127) << shift
        shift += 7
        pos += 1
        if shift > BITS:
            raise IndexError(pos)
    number |= byte << shift
    return number >> 1 ^ -(number & 1), pos + 1


class _Numbers(dict[int, bytes]):
    """Of variable length, as `_number` reads them."""

    def __missing__(self, number: int) -> bytes:
        left = number << 1 if number >= 0 else ~number << 1 | 1
        encoded = bytearray()
        while left > 127:
            encoded.append(left & 127 | 128)
            left >>= 7
        encoded.append(left)
        travelling = bytes(encoded)
        if 0 <= number < SMALL:
            self[number] = travelling
        return travelling


class _Prefixed(dict[str, bytes]):
    """Names of headers, which are few, as they travel: behind their length."""

    def __missing__(self, name: str) -> bytes:
        raw = name.encode()
        travelling = _numbers[len(raw)] + raw
        if len(self) < KNOWN and len(raw) <= LONGEST:
            self[name] = travelling
        return travelling


class _Names(dict[bytes, str]):
    """Names of headers, which are few, as text."""

    def __missing__(self, raw: bytes) -> str:
        name = raw.decode(errors="replace")
        if len(self) < KNOWN and len(raw) <= LONGEST:
            self[raw] = name
        return name


_numbers, _prefixed, _names = _Numbers(), _Prefixed(), _Names()
_NULL = _numbers[-1]
