"""Records that join a batch of the driver without a future of their own, and how they hear what became of it."""

from __future__ import annotations

from typing import Any

import pytest
from kafka import TopicPartition as Partition
from kafka.errors import InvalidRecordError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.producer.producer_batch import ProducerBatch
from kafka.producer.record_accumulator import RecordAccumulator

from mqkit.backends.kafka.record import ProducerRecord
from mqkit.backends.kafka.sent import Sent, append

PLACE = Partition("orders", 3)


class Line:
    """What a publisher has of one partition."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.accumulator = RecordAccumulator(message_version=2, batch_size=size, delivery_timeout_ms=60_000)
        self.sent: list[Any] = []
        self.full: list[bool] = []
        self.rung = 0

    def add(self, *bodies: bytes) -> None:
        for body in bodies:
            record = ProducerRecord("orders", b"key", body, [("name", b"value")])
            sent, full = append(self.accumulator, PLACE, record, self._ring)
            self.sent.append(sent)
            self.full.append(full)

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
    assert [type(sent) is Sent for sent in line.sent] == [False, True, True]
    assert batch.record_count == 3
    assert batch.max_record_size > 0
    assert bodies_of(batch) == [(b"key", body, [("name", b"value")]) for body in (b"first", b"second", b"third")]


def test_the_sender_is_told_of_a_new_batch_and_of_one_that_is_followed() -> None:
    line = Line(size=400)
    line.add(*[b"x" * 100] * 5)
    assert [batch.record_count for batch in line.batches] == [2, 2, 1]
    assert line.full == [True, False, True, True, True]


def test_an_answered_batch_answers_all_its_records_and_rings_when_it_can_be_seen() -> None:
    line = Line()
    line.add(b"first", b"second", b"third")
    seen: list[list[bool]] = []
    line.sent[0].add_both(lambda _: seen.append(line.done))
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


def test_a_batch_that_is_given_up_fails_all_its_records() -> None:
    line = Line()
    line.add(b"first", b"second")
    line.batches[0].abort(KafkaTimeoutError())
    assert (line.done, line.failures) == ([True] * 2, [KafkaTimeoutError] * 2)


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
    assert [type(sent) is Sent for sent in line.sent] == [False, True, False, True]
