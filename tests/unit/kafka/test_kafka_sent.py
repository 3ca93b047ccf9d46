"""Records that join a batch of the driver without a future of their own, and how they hear what became of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka import TopicPartition as Partition
from kafka.errors import (
    InvalidRecordError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotEnoughReplicasAfterAppendError,
    NotEnoughReplicasError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumberError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from kafka.producer.future import FutureRecordMetadata
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecordsBuilder

from mqkit.backends.kafka import sent as sents
from mqkit.backends.kafka.errors import GivenUp, publish_error
from mqkit.backends.kafka.record import ProducerRecord, tail_of
from mqkit.backends.kafka.sent import First, Sent, appender
from mqkit.errors import Denied, MessageTooLarge, MqkitError, NotFound, PublishFailed, PublishUnknown

PLACE = Partition("orders", 3)
NOW = 1_700_000_000_000


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    sents._understood.cache_clear()
    yield
    sents._understood.cache_clear()


class Line:
    """What a publisher has of one partition."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.accumulator = RecordAccumulator(message_version=2, batch_size=size, delivery_timeout_ms=60_000)
        self.append = appender()
        self.sent: list[Any] = []
        self.rung = 0

    def add(self, *bodies: bytes) -> None:
        for body in bodies:
            record = ProducerRecord("orders", b"key", body, tail_of([("name", b"value")]))
            self.sent.append(self.append(self.accumulator, PLACE, record, self._ring))

    def _ring(self, _: object) -> None:
        self.rung += 1

    @property
    def batches(self) -> list[ProducerBatch]:
        return list(self.accumulator._batches[PLACE])

    @property
    def done(self) -> list[bool]:
        return [sent.is_done for sent in self.sent]

    @property
    def failures(self) -> list[type[BaseException] | None]:
        return [None if sent.exception is None else type(sent.exception) for sent in self.sent]


def bodies_of(batch: ProducerBatch) -> list[tuple[bytes, bytes, list[tuple[str, bytes]]]]:
    batch.records.close()
    return [(record.key, record.value, record.headers) for each in batch.records.records() for record in each]


def test_they_are_in_the_batch_in_their_order() -> None:
    line = Line()
    line.add(b"first", b"second", b"third")
    [batch] = line.batches
    assert [type(sent) for sent in line.sent] == [First, Sent, Sent]
    assert batch.record_count == 3
    assert batch.max_record_size > 0
    assert bodies_of(batch) == [(b"key", body, [("name", b"value")]) for body in (b"first", b"second", b"third")]


nullable = st.none() | st.binary(max_size=200) | st.binary(min_size=8_200, max_size=8_200)
contents = st.lists(
    st.tuples(
        st.integers(-(2**33), 2**33),  # milliseconds since the first
        nullable,
        nullable,
        st.lists(st.tuples(st.text(max_size=70), st.binary(max_size=70)), max_size=70),
    ),
    max_size=70,
)


@given(contents)
def test_a_batch_has_the_very_bytes_that_the_driver_would_have_written(records: list[Any]) -> None:
    ours, theirs = MemoryRecordsBuilder(2, 0, 1 << 15), MemoryRecordsBuilder(2, 0, 1 << 15)
    for builder in (ours, theirs):
        builder.append(NOW, b"first", None, [])
    for age, key, value, headers in records:
        size = sents._put(ours, ProducerRecord("orders", key, value, tail_of(headers)), NOW + age)
        added = theirs.append(NOW + age, key, value, headers)
        assert size == (0 if added is None else added.size)
    for builder in (ours, theirs):
        builder.close()
    assert ours.buffer() == theirs.buffer()
    assert ours.next_offset() == theirs.next_offset()
    assert sents._put(ours, ProducerRecord("orders", None, b"late", tail_of([])), NOW) == 0


@given(st.lists(st.tuples(st.text(max_size=70), st.text(max_size=70) | st.binary(max_size=9_000)), max_size=70))
def test_headers_come_back_from_what_travels(headers: list[tuple[str, str | bytes]]) -> None:
    raw = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
    assert ProducerRecord("orders", None, None, tail_of(headers)).headers == raw


def test_what_has_no_room_in_a_batch_begins_another() -> None:
    line = Line(size=400)
    line.add(*[b"x" * 100] * 5)
    assert [batch.record_count for batch in line.batches] == [2, 2, 1]


def test_an_answered_batch_answers_all_its_records_and_rings_when_it_can_be_seen() -> None:
    line = Line()
    line.add(b"first", b"second", b"third")
    seen: list[list[bool]] = []
    line.sent[0].future.add_both(lambda _: seen.append(line.done))
    assert line.done == [False] * 3
    line.batches[0].complete(7, -1)
    assert line.rung == 1
    assert seen == [[True] * 3]
    assert line.failures == [None] * 3


def test_one_record_that_is_refused_has_an_error_of_its_own() -> None:
    line = Line()
    line.add(b"first", b"second", b"third")
    errors = {1: InvalidRecordError("this one")}
    line.batches[0].complete_exceptionally(KafkaTimeoutError(), lambda index: errors.get(index, KafkaTimeoutError()))
    assert line.rung == 1
    assert line.failures == [KafkaTimeoutError, InvalidRecordError, KafkaTimeoutError]


def test_of_a_batch_that_is_given_up_nobody_knows_whatever_was_the_reason() -> None:
    line = Line()
    line.add(b"first", b"second")
    line.batches[0].abort(MessageSizeTooLargeError("another one"))
    assert (line.done, line.failures) == ([True] * 2, [GivenUp] * 2)
    for sent in line.sent:
        assert isinstance(sent.exception.cause, MessageSizeTooLargeError)
        error = publish_error(sent.exception, "Kafka")
        assert isinstance(error, PublishUnknown)
        assert "MessageSizeTooLargeError: another one" in str(error)


@pytest.mark.parametrize("times", [1, 2])
def test_the_parts_of_a_batch_that_is_split_answer_theirs(times: int) -> None:
    line = Line()
    line.add(*[b"%d" % number for number in range(8)])
    for _ in range(times):
        for batch in line.batches:
            line.accumulator._batches[PLACE].remove(batch)
            batch.records.close()
            line.accumulator.split_and_reenqueue(batch)
    parts = sorted(line.batches, key=lambda batch: min(int(body) for _, body, _ in bodies_of(batch)))
    assert [body for part in parts for _, body, _ in bodies_of(part)] == [b"%d" % number for number in range(8)]

    for number, part in enumerate(parts):
        each = 8 // len(parts)
        assert line.done == [index < number * each for index in range(8)]
        if number == 1:
            part.complete_exceptionally(MessageSizeTooLargeError(), lambda _: MessageSizeTooLargeError())
        else:
            part.complete(0, -1)
        assert line.rung > number
    each = 8 // len(parts)
    assert line.failures == [None if not each <= index < 2 * each else MessageSizeTooLargeError for index in range(8)]


def test_what_comes_while_a_batch_is_sent_begins_another() -> None:
    line = Line()
    line.add(b"first", b"second")
    line.batches[0].records.close()
    line.add(b"third", b"fourth")
    assert [batch.record_count for batch in line.batches] == [2, 2]
    assert [type(sent) for sent in line.sent] == [First, Sent, First, Sent]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (NotLeaderForPartitionError, PublishUnknown),  # an earlier try may have been answered by nobody
        (NotEnoughReplicasError, PublishUnknown),
        (NotEnoughReplicasAfterAppendError, PublishUnknown),
        (OutOfOrderSequenceNumberError, PublishUnknown),
        (UnknownTopicOrPartitionError, NotFound),
        (MessageSizeTooLargeError, MessageTooLarge),
        (TopicAuthorizationFailedError, Denied),
        (InvalidRecordError, PublishFailed),
    ],
)
def test_what_a_failure_says_of_a_publish(failure: type[KafkaError], expected: type[MqkitError]) -> None:
    assert type(publish_error(failure(), "Kafka")) is expected


def test_who_waits_for_a_batch_that_is_split_again_is_woken() -> None:
    line = Line()
    line.add(*[b"%d" % number for number in range(8)])
    for _ in range(2):
        waited = [batch.produce_future for batch in line.batches]
        for batch in line.batches:
            line.accumulator._batches[PLACE].remove(batch)
            batch.records.close()
            line.accumulator.split_and_reenqueue(batch)
        assert all(future.wait(0) for future in waited)


def _without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ProducerBatch.__init__

    def init(batch: Any, *arguments: Any, **named: Any) -> None:
        original(batch, *arguments, **named)
        del batch.max_record_size

    monkeypatch.setattr(ProducerBatch, "__init__", init)
    monkeypatch.setattr(ProducerBatch, "try_append", _appended_anew)


def _appended_anew(batch: Any, timestamp: Any, key: Any, value: Any, headers: Any, now: Any = None) -> Any:
    added = batch.records.append(timestamp, key, value, headers)
    if added is None:
        return None
    future = FutureRecordMetadata(batch.produce_future, added.offset, added.timestamp, added.crc, 0, 0, 0)
    batch._record_futures.append(future)
    return future


def _with_more_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ProducerBatch.try_append

    def counted(batch: Any, *arguments: Any, **named: Any) -> Any:
        batch.appended = getattr(batch, "appended", 0) + 1
        return original(batch, *arguments, **named)

    monkeypatch.setattr(ProducerBatch, "try_append", counted)


def _with_another_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    append = RecordAccumulator.append
    monkeypatch.delattr(RecordAccumulator, "_tp_lock")

    def appended(accumulator: Any, place: Any, *arguments: Any, **named: Any) -> Any:
        accumulator._tp_lock = lambda _: contextlib.nullcontext()
        try:
            return append(accumulator, place, *arguments, **named)
        finally:
            del accumulator._tp_lock

    monkeypatch.setattr(RecordAccumulator, "append", appended)


def _with_another_form(monkeypatch: pytest.MonkeyPatch) -> None:
    original = DefaultRecordBatchBuilder.append

    def append(builder: Any, offset: int, timestamp: Any, key: Any, value: Any, headers: Any) -> Any:
        return original(builder, offset, timestamp, key, value, [*headers, ("more", b"")])

    monkeypatch.setattr(DefaultRecordBatchBuilder, "append", append)


@pytest.mark.parametrize("change", [_without_a_name, _with_more_to_count, _with_another_lock, _with_another_form])
def test_where_the_driver_has_changed_records_join_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    change(monkeypatch)

    with caplog.at_level(logging.WARNING, "mqkit"):
        line = Line()
        line.add(b"first", b"second", b"third")

    assert [record.message for record in caplog.records].count("driver.changed") == 1
    assert [type(sent) for sent in line.sent] == [First] * 3
    line.batches[0].complete_exceptionally(KafkaTimeoutError(), lambda index: InvalidRecordError(str(index)))
    assert line.done == [True] * 3
    assert [str(sent.exception)[-1] for sent in line.sent] == ["0", "1", "2"]
