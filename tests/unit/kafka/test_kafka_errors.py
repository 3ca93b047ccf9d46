"""What the failure of a transaction means."""

from __future__ import annotations

import pytest
from kafka import errors as native

from mqkit.backends.kafka.errors import reason_of, transaction_error
from mqkit.errors import Denied, Lost, MessageTooLarge, MqkitError, NotFound, PublishFailed, Unavailable


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ([native.NotCoordinatorError()], Unavailable),
        ([native.KafkaTimeoutError()], Unavailable),
        ([native.InvalidTxnStateError()], Unavailable),
        ([native.KafkaError("something has failed before")], Unavailable),
        ([native.KafkaError("unexpected: OffsetMetadataTooLargeError")], PublishFailed),
        ([native.ProducerFencedError()], Lost),
        ([native.TopicAuthorizationFailedError("numbers")], Denied),
        ([native.InvalidRecordError()], PublishFailed),
        ([native.MessageSizeTooLargeError()], MessageTooLarge),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value[0]).__name__,
)
def test_only_what_is_about_a_record_is_a_refusal(failures: list[Exception], expected: type[MqkitError]) -> None:
    assert type(transaction_error(failures, "Kafka")) is expected


def test_the_record_is_found_for_which_the_others_were_given_up() -> None:
    given_up = [native.TransactionAbortedError(), native.KafkaError("something has failed before")]

    assert type(transaction_error([*given_up, native.InvalidRecordError()], "Kafka")) is PublishFailed


def test_that_time_was_up_is_said_only_where_the_driver_knows_of_nothing_else() -> None:
    ours, theirs = Unavailable("Kafka does not answer"), native.MessageSizeTooLargeError()

    assert reason_of(ours, [], "Kafka") is ours
    assert type(reason_of(ours, [theirs], "Kafka")) is MessageTooLarge


@pytest.mark.parametrize("ours", [NotFound("no such topic"), Lost("others have it"), KeyboardInterrupt()])
def test_what_is_none_of_the_drivers_stays_as_it_is(ours: BaseException) -> None:
    assert reason_of(ours, [native.MessageSizeTooLargeError()], "Kafka") is ours


def test_what_the_driver_raised_is_looked_at_with_what_it_noted_before() -> None:
    raised = native.KafkaError("something has failed before")

    assert type(reason_of(raised, [], "Kafka")) is Unavailable
    assert type(reason_of(raised, [native.InvalidRecordError()], "Kafka")) is PublishFailed
