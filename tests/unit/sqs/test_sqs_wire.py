"""Messages as text and attributes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqkit.backends.base import Address, Outgoing, Received
from mqkit.backends.sqs import wire
from mqkit.envelope import Dead, Envelope

QUEUE = Address("queue", "words")


def message(body: bytes = b"word", **changes: Any) -> Outgoing:
    fields: dict[str, Any] = {"id": "m1", "key": None, "headers": {}, "envelope": Envelope()} | changes
    return Outgoing(QUEUE, body=body, **fields)


def carried(sent: Outgoing, returns: int = 0) -> Received:
    """As it would be received."""
    packed = wire.pack(sent, 1000.0, hop=900)
    raw = {
        "MessageId": "sqs-1",
        "ReceiptHandle": "r",
        "Body": packed.body,
        "Attributes": {"ApproximateReceiveCount": str(returns + 1)},
        "MessageAttributes": packed.attributes,
    }
    return wire.received(QUEUE, "words", raw, wire.head_of(raw), 1.0)


@given(st.binary(max_size=50))
def test_any_body_arrives_as_it_was(body: bytes) -> None:
    assert carried(message(body)).body == body


@pytest.mark.parametrize("body", ["text", " x \r\n", "\u2028 \U0001f600", "ä\t", "="])
def test_text_stays_readable_for_others(body: str) -> None:
    assert wire.pack(message(body.encode()), 0.0, hop=900).body == body


@pytest.mark.parametrize("body", [b"", b"\0", b"\x0b", "\ufffe".encode(), b"\xff"])
def test_what_sqs_does_not_take_is_flagged_as_base64(body: bytes) -> None:
    packed = wire.pack(message(body), 0.0, hop=900)

    assert '"encoding":"base64"' in packed.attributes[wire.OURS]["StringValue"]
    assert packed.body


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=5), max_size=20))
def test_any_headers_arrive_in_ten_attributes_at_most(headers: dict[str, str]) -> None:
    sent = message(headers=headers)

    assert len(wire.pack(sent, 0.0, hop=900).attributes) <= 10
    assert carried(sent).headers == headers


@pytest.mark.parametrize("name", ["aws.x", "AMAZON.x", ".a", "a.", "a..b", "mqkit2", "ä", "a b", "x" * 256])
def test_a_name_that_aws_refuses_is_packed(name: str) -> None:
    assert set(wire.pack(message(headers={name: "1"}), 0.0, hop=900).attributes) == {wire.OURS}


def test_the_attribute_of_ours_holds_characters_that_sqs_takes() -> None:
    packed = wire.pack(message(headers={"n\ufffe": "\uffff\x01"}), 0.0, hop=900)

    assert packed.attributes[wire.OURS]["StringValue"].isascii()


def test_envelope_key_and_expiry_arrive() -> None:
    envelope = Envelope(type="Order", attempt=3, since=5.5, dead=Dead("no", origin="words", died_at=7.0))

    got = carried(message(envelope=envelope, key="k", delay=10.0, ttl=60.0))

    assert (got.id, got.key, got.envelope, got.attempt, got.since) == ("m1", "k", envelope, 3, 5.5)
    assert got.expires_at == 1070.0


def test_hand_outs_without_a_verdict_are_what_aws_counts_beyond_the_first() -> None:
    assert carried(message(), returns=2).lost == 2


def test_a_foreign_message_is_its_body_and_its_text() -> None:
    raw = {
        "MessageId": "sqs-1",
        "ReceiptHandle": "r",
        "Body": "hello",
        "Attributes": {"MessageGroupId": "g"},
        "MessageAttributes": {
            "colour": {"DataType": "String", "StringValue": "red"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\0"},
        },
    }

    got = wire.received(QUEUE, "words", raw, wire.head_of(raw), 1.0)

    assert (got.id, got.body, got.key, got.headers, got.attempt) == ("sqs-1", b"hello", "g", {"colour": "red"}, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "nonsense",
        '{"id": 1}',
        '{"id": "m1", "more": %s}' % ("[" * 3000 + "]" * 3000),
        '{"id": "m1", "envelope": {"attempt": %s}}' % ("9" * 400),
        '{"id": "m1", "envelope": {"since": 1e300}}',
    ],
    ids=lambda text: text[:30],
)
def test_an_attribute_of_our_name_that_is_not_ours_makes_a_foreign_message(text: str) -> None:
    raw = {"MessageAttributes": {wire.OURS: {"DataType": "String", "StringValue": text}}}

    assert wire.head_of(raw) is None


@pytest.mark.parametrize("body", ["\u00e4", "no base64", "a"])
def test_a_body_of_somebody_elses_behind_our_attribute_is_what_it_is(body: str) -> None:
    head = wire.Head(id="m1", encoding="base64")
    raw = {"MessageId": "sqs-1", "ReceiptHandle": "r", "Body": body}

    assert wire.received(QUEUE, "words", raw, head, 1.0).body == body.encode()


def test_what_is_sent_on_keeps_every_attribute() -> None:
    attributes = {
        "colour": {"DataType": "String", "StringValue": "red"},
        "number": {"DataType": "Number", "StringValue": "12"},
        "octets": {"DataType": "Binary.png", "BinaryValue": b"\x00\xff"},
    }
    raw = {"Body": "word", "MessageAttributes": {name: {**each, "Extra": []} for name, each in attributes.items()}}

    packed = wire.repack(raw)

    assert (packed.body, packed.attributes) == ("word", attributes)
    assert packed.size == len("wordcolourStringrednumberNumber12octetsBinary.png") + 2


@pytest.mark.parametrize(
    ("delay", "asked", "due"),
    [(0.0, 0, False), (0.2, 1, False), (1.0, 1, False), (899.5, 900, False), (900.0, 900, False), (901.0, 900, True)],
)
def test_a_delay_is_never_too_short_and_beyond_one_hop_says_when_it_is_due(delay: float, asked: int, due: bool) -> None:
    packed = wire.pack(message(delay=delay), 1000.0, hop=900)
    head = wire.head_of({"MessageAttributes": packed.attributes})

    assert wire.seconds(delay, 900) == asked
    assert head is not None
    assert head.due == (1000.0 + delay if due else 0.0)


def test_size_counts_body_and_names_types_and_values_of_attributes() -> None:
    packed = wire.pack(message(b"12345", headers={"ab": "cd"}), 0.0, hop=900)
    ours = packed.attributes[wire.OURS]["StringValue"]

    assert packed.size == 5 + len("ab" + "String" + "cd") + len("mqkit" + "String" + ours)


def test_no_copy_of_a_message_is_dropped_for_another_one() -> None:
    first = message()
    second = message(envelope=Envelope(attempt=2, since=5.0))
    after_a_replay = message(envelope=Envelope(attempt=2, since=9.0))

    ids = {wire.deduplication_id(one) for one in (first, second, after_a_replay)}

    assert len(ids) == 3
    assert wire.deduplication_id(first) == "m1"  # publishing once more is dropped


def test_a_copy_waits_behind_nobody() -> None:
    assert wire.group_id(message(key="k")) == "k"
    assert wire.group_id(message(key="k", envelope=Envelope(attempt=2))) == "m1"
