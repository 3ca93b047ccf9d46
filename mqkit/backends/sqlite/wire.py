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


class Parcel:
    """Messages to one address as flat lists of SQL parameters, encoded before the commit thread sees them."""

    __slots__ = ("count", "delayed", "plain", "prioritised")

    def __init__(self) -> None:
        self.count = 0  # of the plain ones
        # Three columns that the transaction fills in, then ttl, key, message id, envelope, body
        self.plain: list[Any] = []
        self.prioritised: list[Any] = []  # the same, and the priority
        self.delayed: list[Any] = []  # the same; its third column is the delay

    def add(self, message: Outgoing) -> None:
        if message.delay > 0:
            self.delayed += (
                None, None, message.delay, message.ttl, message.key, message.id, frame(message), message.body,
                message.priority,
            )  # fmt: skip
        else:
            self.add_row(message.priority, message.ttl, message.key, message.id, frame(message), message.body)

    def add_row(
        self, priority: int, ttl: float | None, key: str | None, message_id: str, envelope: bytes, body: bytes
    ) -> None:
        """A message that is due."""
        if priority > 0:
            self.prioritised += (None, None, None, ttl, key, message_id, envelope, body, priority)
        else:
            self.plain += (None, None, None, ttl, key, message_id, envelope, body)
            self.count += 1

    def extend(self, other: Parcel) -> None:
        self.count += other.count
        self.plain += other.plain
        self.prioritised += other.prioritised
        self.delayed += other.delayed


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
