"""Batches of records, decoded by us: the driver's own decoder says what is in them."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator
from gzip import BadGzipFile
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition as Partition
from kafka import codec as codecs
from kafka.consumer.fetcher import Fetcher
from kafka.errors import CorruptRecordError, KafkaError, TopicAuthorizationFailedError, UnsupportedCodecError
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords
from kafka.structs import OffsetAndMetadata

from mqkit.backends.kafka import batch as batches
from mqkit.backends.kafka import record
from mqkit.backends.kafka.batch import Damage, decode_with, decoder, records_in
from mqkit.backends.kafka.record import KNOWN, Record

PLACE = Partition("orders", 3)
GZIP, READ_COMMITTED = 1, 1

Content = tuple[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]

nullable = st.none() | st.binary(max_size=200) | st.binary(min_size=8_200, max_size=8_200)
contents = st.lists(
    st.tuples(
        st.integers(1, 300),  # how far the offset is behind the one before
        st.integers(-(2**40), 2**40),
        nullable,
        nullable,
        st.lists(st.tuples(st.text(max_size=70), nullable), max_size=4),
    ),
    max_size=20,
)


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    batches._understood.cache_clear()
    yield
    batches._understood.cache_clear()


def batch_of(
    records: list[Content], *, base: int = 0, codec: int = 0, producer: int = -1, transaction: bool = False
) -> bytes:
    builder = DefaultRecordBatchBuilder(2, codec, transaction, producer, 0 if producer >= 0 else -1, 0, 1 << 24)
    offset = base
    for ahead, age, key, value, headers in records:
        builder.append(offset, 1_700_000_000_000 + age, key, value, headers)
        offset += ahead
    data = builder.build()
    data[:8] = base.to_bytes(8, "big")
    return bytes(data)


def ours(data: bytes, first: int = 0, **options: Any) -> list[Any]:
    assert issubclass(decoder(), batches._Whole), "the driver decodes"
    fetched = decoder()(first, PLACE, MemoryRecords(data), **options)
    records = _taken(fetched)
    assert not fetched, "not all was read"
    return [(fetched.next_fetch_offset, fetched.leader_epoch), *map(content, records)]


def _taken(fetched: Any) -> list[Any]:
    taken = fetched.take()
    if taken and isinstance(taken[-1], Damage):
        raise taken[-1].error
    return records_in(taken)


def theirs(data: bytes, first: int = 0, **options: Any) -> list[Any]:
    fetched = Fetcher.PartitionRecords(first, PLACE, MemoryRecords(data), **options)
    records = fetched.take()
    return [(fetched.next_fetch_offset, fetched.leader_epoch), *map(content, records)]


def content(record: Any) -> tuple[Any, ...]:
    return record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, record.headers


def message(text: bytes) -> Content:
    return 1, 0, None, text, [("name", b"value")]


@given(contents, contents, st.sampled_from([0, GZIP]), st.integers(0, 600))
def test_they_hold_what_the_driver_finds_in_them(
    first: list[Content], second: list[Content], codec: int, wanted: int
) -> None:
    """Also where only the later ones were asked for: the broker gives whole batches."""
    data = batch_of(first, codec=codec) + batch_of(second, base=10_000, codec=codec)
    assert ours(data, wanted) == theirs(data, wanted)


def test_the_time_is_the_brokers_where_the_topic_says_so() -> None:
    data = bytearray(batch_of([message(b"a"), message(b"b")]))
    data[22] |= DefaultRecordBatch.TIMESTAMP_TYPE_MASK  # the lower byte of the attributes
    data[35:43] = (1_800_000_000_000).to_bytes(8, "big")  # the latest time of the batch
    [_, *records] = ours(bytes(data), check_crcs=False)
    assert [record[3] for record in records] == [1_800_000_000_000] * 2
    assert ours(bytes(data), check_crcs=False) == theirs(bytes(data), check_crcs=False)


def test_what_a_transaction_took_back_is_left_out() -> None:
    class Aborted:
        producer_id, first_offset = 7, 0

    data = batch_of([message(b"no")], producer=7, transaction=True) + batch_of([message(b"yes")], base=1, producer=8)
    options = {"isolation_level": READ_COMMITTED, "aborted_transactions": [Aborted]}
    [_, *records] = ours(data, **options)
    assert [record[5] for record in records] == [b"yes"]
    assert ours(data, **options) == theirs(data, **options)


def test_batches_of_the_old_format_are_left_to_the_driver() -> None:
    builder = LegacyRecordBatchBuilder(1, 0, 1 << 16)
    builder.append(0, 1_700_000_000_000, b"key", b"old")
    data = bytes(builder.build())
    assert ours(data + batch_of([message(b"new")], base=1)) == theirs(data + batch_of([message(b"new")], base=1))
    assert [record[5] for record in ours(data)[1:]] == [b"old"]


def test_a_wrong_sum_is_an_error() -> None:
    data = bytearray(batch_of([message(b"body")]))
    data[-1] ^= 1
    with pytest.raises(CorruptRecordError, match="crc"):
        ours(bytes(data))


@pytest.mark.parametrize("ours_decodes", [True, False])
def test_after_a_wrong_sum_the_driver_asks_again(monkeypatch: pytest.MonkeyPatch, ours_decodes: bool) -> None:
    """Where it was. It would go on for ever with what it has, which looks as if something were left in it."""
    if not ours_decodes:
        monkeypatch.delattr(DefaultRecordBatch, "_maybe_uncompress")
    assert issubclass(decoder(), batches._Whole) == ours_decodes
    monkeypatch.undo()
    damaged = bytearray(batch_of([message(b"damaged")], base=1))
    damaged[-1] ^= 1
    data = MemoryRecords(batch_of([message(b"first")]) + damaged + batch_of([message(b"last")], base=2))
    fetcher, state = fetcher_with(decoder()(0, PLACE, data))

    fetched, _ = Fetcher.fetched_records(fetcher)
    assert [record.value for record in records_in(fetched[PLACE])] == [b"first"]
    assert isinstance(fetched[PLACE][-1], Damage)
    assert isinstance(fetched[PLACE][-1].error, CorruptRecordError)
    assert not fetcher._next_partition_records
    assert Fetcher.fetched_records(fetcher) == ({}, False)
    assert state.position.offset == 1


@pytest.mark.parametrize("error", [CorruptRecordError("at the broker"), KafkaError("no complete records")])
def test_what_is_found_before_it_is_decoded_is_damage_of_its_partition(error: KafkaError) -> None:
    fetcher, state = fetcher_with(None, before_decoding=error)

    [(place, [damage])] = Fetcher.fetched_records(fetcher)[0].items()

    assert (place, type(damage.error), damage.error.__cause__) == (PLACE, CorruptRecordError, error)
    assert str(error) in str(damage.error)
    assert state.position.offset == 0
    assert Fetcher.fetched_records(fetcher) == ({}, False)


def test_what_the_whole_consumer_is_told_is_raised() -> None:
    fetcher, _ = fetcher_with(None, before_decoding=TopicAuthorizationFailedError())
    with pytest.raises(TopicAuthorizationFailedError):
        Fetcher.fetched_records(fetcher)


def fetcher_with(fetched: Any, before_decoding: KafkaError | None = None) -> tuple[Any, Any]:
    """What a fetcher of the driver knows that has this in its hands, and its state of the partition."""

    def parse(_: Any) -> Any:
        assert before_decoding is not None
        raise before_decoding

    state = SimpleNamespace(position=OffsetAndMetadata(0, "", -1), highwater=None)
    subscriptions = SimpleNamespace(
        assignment={PLACE: state},
        is_paused=lambda _: False,
        is_assigned=lambda _: True,
        is_fetchable=lambda _: True,
        position=lambda _: state.position,
        move_partition_to_end=lambda _: None,
    )
    fetcher = SimpleNamespace(
        config={"max_poll_records": sys.maxsize},
        _subscriptions=subscriptions,
        _next_in_line_exception_metadata=None,
        _paused_completed_fetches={},
        _paused_partition_records={},
        _completed_fetches=deque([] if fetched else [SimpleNamespace(fetched_offset=0, topic_partition=PLACE)]),
        _parse_fetched_data=parse,
        _sensors=None,
        _next_partition_records=fetched,
    )
    fetcher._append = MethodType(Fetcher._append, fetcher)
    decode_with(fetcher)
    return fetcher, state


def test_what_cannot_be_unpacked_is_damage_too() -> None:
    data = bytearray(batch_of([message(b"body" * 100)], codec=GZIP))
    data[-20:-10] = bytes(10)
    [damage] = decoder()(0, PLACE, MemoryRecords(bytes(data)), check_crcs=False).take()
    assert isinstance(damage, Damage)
    assert isinstance(damage.error, BadGzipFile)


def test_what_this_process_cannot_unpack_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecs, "has_snappy", lambda: False)
    data = bytearray(batch_of([message(b"body")]))
    data[22] |= DefaultRecordBatch.CODEC_SNAPPY
    fetched = decoder()(0, PLACE, MemoryRecords(bytes(data)), check_crcs=False)
    with pytest.raises(UnsupportedCodecError):
        fetched.take()
    assert not fetched


@pytest.mark.parametrize("left", range(12))
def test_a_batch_that_ends_too_early_is_an_error(left: int) -> None:
    """No part of it is taken: its records would be passed over."""
    whole = batch_of([message(b"first"), (1, 0, b"key", None, [])])
    data = bytearray(whole[: DefaultRecordBatch.HEADER_STRUCT.size + left])
    data[8:12] = (len(data) - 12).to_bytes(4, "big")
    with pytest.raises(CorruptRecordError):
        ours(bytes(data), check_crcs=False)


def test_a_batch_that_does_not_end_with_its_last_record_is_an_error() -> None:
    data = bytearray(batch_of([message(b"first"), message(b"second")]))
    data[57:61] = (1).to_bytes(4, "big")  # how many there are
    with pytest.raises(CorruptRecordError, match="does not end with its last record"):
        ours(bytes(data), check_crcs=False)


def test_headers_that_cannot_be_read_do_not_keep_the_message_back() -> None:
    data = bytearray(batch_of([(1, 0, None, b"body", [("one", b"1"), ("two", b"2")])]))
    data[-6] = 0x7E  # the name is said to be as long as never mind
    [_, record] = ours(bytes(data), check_crcs=False)
    assert record[5] == b"body"
    assert record[6][0] == ("one", b"1")


@pytest.mark.parametrize(
    "tail",
    [
        b"\xff\xff\xff\xff\x07\x00\x00\x85\x00",  # 2**30 headers, and the name of the second ends where it begins
        b"\xff\xff\xff\xff\x07\x01\x00",  # a name of length -1
        b"\x02" + b"\xff" * 1_000_000,  # a number that has no end
    ],
)
def test_headers_that_lead_nowhere_have_an_end(tail: bytes) -> None:
    assert len(Record("topic", 0, 0, 0, None, None, tail).headers) <= 1


def test_only_names_of_usual_length_are_remembered() -> None:
    names = record._Names()
    for number in range(2 * KNOWN):
        raw = b"%d" % number + b"long" * 1000 * (number % 2)
        assert names[raw] == raw.decode()
    assert len(names) == KNOWN
    assert sum(map(len, names)) < 64 * KNOWN


@pytest.mark.parametrize("name", ["append", "build"])
def test_a_driver_that_builds_batches_in_another_way_decodes_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.delattr(DefaultRecordBatchBuilder, name)
    with caplog.at_level(logging.WARNING, "mqkit"):
        assert not issubclass(decoder(), batches._Whole)
    assert [record.message for record in caplog.records].count("driver.changed") == 1


def test_a_driver_built_in_another_way_decodes_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unpack = DefaultRecordBatch._maybe_uncompress

    def iterate(batch: Any) -> Any:
        unpack(batch)
        return batch

    monkeypatch.setattr(DefaultRecordBatch, "__iter__", iterate)
    monkeypatch.delattr(DefaultRecordBatch, "_maybe_uncompress")
    with caplog.at_level(logging.WARNING, "mqkit"):
        assert not issubclass(decoder(), batches._Whole)
        assert not issubclass(decoder(), batches._Whole)
    assert [record.message for record in caplog.records].count("driver.changed") == 1
    fetched = decoder()(0, PLACE, MemoryRecords(batch_of([message(b"body")])))
    assert [record.value for record in records_in(fetched.take())] == [b"body"]
