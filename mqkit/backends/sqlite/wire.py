"""Messages as rows and rows as messages; pure."""

from __future__ import annotations

from typing import Any

import msgspec

from mqkit.backends.base import Address, Outgoing, Received
from mqkit.envelope import Envelope


class _Frame(msgspec.Struct, array_like=True):
    """What travels beside key, id and body: one JSON column."""

    envelope: Envelope
    headers: dict[str, str]


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Frame).decode

MESSAGE = "m.id, m.expires, m.key, m.message_id, m.envelope, m.body, m.priority"  # what `received` takes


def frame(message: Outgoing) -> bytes:
    return _encode(_Frame(message.envelope, message.headers))


def log_values(message: Outgoing) -> tuple[Any, ...]:
    """ttl, key, message id, envelope, body: what differs between two messages that go into the log together."""
    return message.ttl, message.key, message.id, frame(message), message.body


def later_values(message: Outgoing, due: float) -> tuple[Any, ...]:
    """due, ttl, priority, key, message id, envelope, body."""
    return due, message.ttl, message.priority, message.key, message.id, frame(message), message.body


def first_received(row: tuple[Any, ...], owner: int, address: Address) -> Received:
    """A message that nobody has had before."""
    id, expires, key, message_id, frame, body, priority = row
    decoded = _decode(frame)
    envelope = decoded.envelope
    return Received(
        (owner, id, 1), address, message_id, body, key, decoded.headers, envelope,
        envelope.attempt, 1, 0, 0, None, expires, priority, None, id,
    )  # fmt: skip


def received(row: tuple[Any, ...], counts: tuple[Any, ...], owner: int, address: Address) -> Received:
    """A message with a history; `counts` are attempt (None: as the envelope says), deliveries, lost, solo, since."""
    id, expires, key, message_id, frame, body, priority = row
    attempt, deliveries, lost, solo, since = counts
    decoded = _decode(frame)
    envelope = decoded.envelope
    return Received(
        (owner, id, deliveries), address, message_id, body, key, decoded.headers, envelope,
        envelope.attempt if attempt is None else attempt, deliveries, lost, solo, since, expires, priority, None, id,
    )  # fmt: skip
