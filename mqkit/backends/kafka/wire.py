"""Messages as records with headers, and back; pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from mqkit.backends.base import Address, Outgoing, Received
from mqkit.backends.kafka.ledger import Held
from mqkit.envelope import from_headers, number_of, to_headers

ID, EXPIRES = "mq-id", "mq-expires"
DUE, TO = "mq-due", "mq-to"  # on the ladder only: epoch seconds, and the topic where it leads
PARTITION = "mq-to-partition"  # ... and the number, if one was chosen
LADDER = (DUE, TO, PARTITION)
KEY = "mq-key"  # of a dead letter, whose own key is one of a kind

_TOPIC = re.compile(r"(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}")  # Source: org.apache.kafka.common.internals.Topic

_PARTITION = re.compile(r"[0-9]{1,10}")

Headers = list[tuple[str, bytes]]


class Hop(NamedTuple):
    """
    What the ladder has to know of a record. What its headers do not say, or not so that it can be read, is absent.

    Attributes:
        due: Epoch seconds; 0: long ago.
        to: A topic, or empty.
    """

    due: float
    to: str
    partition: int | None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record as a native client finds it; `Message.native`."""

    topic: str
    partition: int
    offset: int
    timestamp: float  # epoch seconds


def headers_of(message: Outgoing, now: float) -> dict[str, str]:
    """
    Args:
        now: The publisher's clock, from which the ttl counts.
    """
    headers = to_headers(message.envelope)
    headers[ID] = message.id
    if message.ttl is not None:
        headers[EXPIRES] = repr(now + message.delay + message.ttl)
    return message.headers | headers if message.headers else headers


def received(address: Address, record: Any, held: Held) -> Received:
    """
    Args:
        record: A `Record`, or the driver's ConsumerRecord. Who hands the message out gives it a handle.
    """
    texts = _texts(record.headers)
    envelope, headers = from_headers(texts)
    key = texts.get(KEY)
    if key is None and record.key is not None and not address.dead:
        key = _text(record.key)
    return Received(
        None,
        address,
        texts.get(ID) or f"{record.topic}-{record.partition}-{record.offset}",
        record.value or b"",
        key,
        headers,
        envelope,
        max(envelope.attempt, held.attempt),
        None,
        held.lost,
        held.solo,
        held.since or envelope.since or None,
        number_of(texts.get(EXPIRES)),
        0,
        None,
        Entry(record.topic, record.partition, record.offset, record.timestamp / 1000),
    )


def _texts(headers: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    try:
        return {name: value.decode() for name, value in headers}  # type: ignore[union-attr]  # nearly always
    except (AttributeError, UnicodeDecodeError):
        return {name: _text(value) for name, value in headers}


def hop_of(headers: Sequence[tuple[str, bytes | None]]) -> Hop:
    due, to, partition = (value_of(headers, name) for name in LADDER)
    seconds = number_of(due)
    return Hop(
        seconds or 0.0,
        to if to and _TOPIC.fullmatch(to) else "",
        int(partition) if partition and _PARTITION.fullmatch(partition) else None,
    )


def value_of(headers: Sequence[tuple[str, bytes | None]], name: str) -> str | None:
    return next((_text(value) for key, value in headers if key == name), None)


def without(headers: Iterable[tuple[str, bytes | None]], *names: str) -> Headers:
    """As they may be sent on: the driver takes no null, which a foreign record may have."""
    return [(name, value or b"") for name, value in headers if name not in names]


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode(errors="replace")
