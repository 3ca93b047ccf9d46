"""Messages as AMQP properties and bodies, and back; pure."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pika

from mqkit._ids import new_id
from mqkit.backends.base import Address, Outgoing, Received
from mqkit.envelope import from_headers, number_of, to_headers
from mqkit.errors import MessageTooLarge, MqkitError, Unencodable

SHORT = 255  # bytes of a short string: names, routing keys, header names and some properties
KEY, EXPIRES, ID = "mq-key", "mq-expires", "mq-id"
COUNT = "x-delivery-count"
_NATIVE = {
    "mq-type": "type",
    "mq-content-type": "content_type",
    "mq-correlation-id": "correlation_id",
    "mq-reply-to": "reply_to",
}
_PERSISTENT = 2
_FRAME = 8  # bytes a frame takes around its content


class Native(NamedTuple):
    """What a client of AMQP would see beside the body; `Message.native`."""

    exchange: str
    routing_key: str
    properties: pika.BasicProperties


def properties(message: Outgoing, now: float) -> pika.BasicProperties:
    """
    What travels beside the body. Native where AMQP has a property, else a header that begins with `mq-`.

    Args:
        now: The publisher's clock, from which the ttl counts.
    """
    headers: dict[str, Any] = to_headers(message.envelope)
    native: dict[str, str] = {}
    for name, field in _NATIVE.items():
        value = headers.get(name)
        if value is not None and _fits(value):
            native[field] = headers.pop(name)
    if message.headers:
        headers = {**message.headers, **headers}
    if message.key is not None:
        headers[KEY] = message.key
    if message.ttl is not None:
        headers[EXPIRES] = repr(now + message.delay + message.ttl)
    id = message.id
    if not _fits(id):
        headers[ID] = id
        id = short_id(id)
    return pika.BasicProperties(
        headers=headers,
        delivery_mode=_PERSISTENT,
        message_id=id,
        priority=message.priority or None,
        **native,
    )


def refused(message: Outgoing, encoded: pika.BasicProperties, frame_max: int) -> MqkitError | None:
    """Why the server would close the connection on such headers."""
    if not message.headers and not encoded.headers:
        return None
    for name in message.headers:
        if not _fits(name):
            return Unencodable(
                f"header {name[:40]!r}... has {len(name.encode())} bytes; RabbitMQ takes {SHORT} of a name"
            )
    if sum(map(len, message.headers)) + sum(map(len, message.headers.values())) < frame_max // 8:
        return None
    size = sum(len(piece) for piece in encoded.encode()) + _FRAME
    if size > frame_max - 1024:
        return MessageTooLarge(
            f"the headers of message {message.id} are {size:,} bytes and RabbitMQ takes {frame_max - 1024:,}; "
            "put them into the body"
        )
    return None


def short_id(id: str) -> str:
    """As `message_id`, by which a returned message is recognised."""
    return id if _fits(id) else hashlib.sha256(id.encode()).hexdigest()


def received(
    address: Address, handle: Any, method: Any, properties: pika.BasicProperties, body: bytes, counted: bool
) -> Received:
    """
    Args:
        method: pika's Basic.Deliver.
        counted: Whether to believe the server's count of returns, which may be too high for deaths but never too low.
    """
    table: Mapping[str, Any] = properties.headers or {}
    # A short string that is not UTF-8 is left as bytes by pika.
    texts = {
        name if name.__class__ is str else _text(name): _text(value)
        for name, value in table.items()
        if name[:2] not in ("x-", b"x-")
    }
    for name, field in _NATIVE.items():
        value = getattr(properties, field)
        if value is not None and name not in texts:
            texts[name] = _text(value)
    key, expires, long_id = texts.pop(KEY, None), texts.pop(EXPIRES, None), texts.pop(ID, None)
    envelope, headers = from_headers(texts)
    returns = table.get(COUNT, 0) if counted else 0
    return Received(
        handle,
        address,
        long_id or _id(properties.message_id) or new_id(time.time()),
        body,
        key,
        headers,
        envelope,
        envelope.attempt,
        None,  # a retry is a copy, with which the server begins to count anew
        returns if isinstance(returns, int) else 0,  # others may have put anything there
        0,
        envelope.since or None,
        number_of(expires),
        properties.priority or 0,
        None,
        Native(_text(method.exchange), _text(method.routing_key), properties),
    )


def _id(native: Any) -> str | None:
    """Other clients may have put the bytes of a UUID there."""
    return native.hex() if isinstance(native, bytes) else native


def _fits(text: str) -> bool:
    return len(text) <= SHORT // 4 or len(text.encode()) <= SHORT


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
