"""From a payload and its options to an encoded, checked message. Everything a caller can get wrong fails here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from mqkit._ids import new_id
from mqkit.backends.base import Capabilities, Outgoing
from mqkit.destinations import Destination
from mqkit.envelope import FIRST, LAST, PREFIX, Envelope
from mqkit.errors import CapabilityMissing, ConfigError, MessageTooLarge, Unencodable
from mqkit.message import Message, PublishOptions, current

RESERVE = 4096  # bytes kept free, so that a dead letter with its reason always fits
MAX_ID = 200
MAX_HEADERS = 65_536
_OPTIONS = frozenset(PublishOptions.__annotations__)
_PLAIN: dict[str, Any] = {}


def outgoing(
    to: Destination[Any], payload: Any, options: Mapping[str, Any], can: Capabilities, *, id: str = ""
) -> Outgoing:
    """
    Encode and check one message.

    Args:
        id: Used when the options name none; a new one if empty.

    Raises:
        Unencodable, MessageTooLarge, ConfigError, CapabilityMissing: Nothing was sent; the text names the value.
    """
    name, body = to.schema.encode(payload)
    # Message keys order, so a wrong one is as bad as a wrong payload: both are checked before anything leaves.
    key = options.get("key") if options else None
    if key is None and to.key is not None:
        key = to.key(payload)
    parent, now = current.get(), time.time()
    if parent is None:
        envelope = Envelope(name, to.schema.content_type, "", "", "", now)
    else:
        received = parent._received
        correlation = received.envelope.correlation_id or received.id
        envelope = Envelope(name, to.schema.content_type, correlation, received.id, "", now)
    message = Outgoing(to.address, id or new_id(now), body, key, _PLAIN, envelope)
    if to.partitions != 1:
        message.partitions = to.partitions
    if options:
        _apply(message, to, options, can)
    if key is not None:
        _check_text("key", key)
    size = len(body)
    if message.headers:
        size += sum(len(name) + len(value) for name, value in message.headers.items())
    if size > can.max_body - RESERVE:
        raise too_large(message.id, to, size, can)
    return message


def forwarded(to: Destination[Any], message: Message, can: Capabilities) -> Outgoing:
    """The same message to another destination: body, headers, key and id untouched, attempts begin anew."""
    if not isinstance(message, Message):
        raise ConfigError(f"forward takes a Message, such as delivery.message, not {message!r}")
    if not isinstance(message.body, bytes):
        raise Unencodable(f"body {message.body!r} is {type(message.body).__name__}, not bytes")
    if message.key is not None:
        _check_text("key", message.key)
    envelope = Envelope(
        message.type, message.content_type, message.correlation_id, message.causation_id, sent_at=message.sent_at
    )
    check_envelope(envelope)
    id, headers = _check_id(message.id), _check_headers(message.headers)
    copy = Outgoing(to.address, id, message.body, message.key, headers, envelope, partitions=to.partitions)
    size = len(copy.body) + sum(len(name) + len(value) for name, value in copy.headers.items())
    if size > can.max_body - RESERVE:
        raise too_large(message.id, to, size, can)
    return copy


def check_envelope(envelope: Envelope) -> None:
    """What a caller put there himself. Raises `Unencodable`."""
    _check_text("type", envelope.type)
    _check_text("content_type", envelope.content_type)
    _check_text("correlation_id", envelope.correlation_id)
    _check_text("causation_id", envelope.causation_id)
    sent_at = envelope.sent_at
    if isinstance(sent_at, bool) or not isinstance(sent_at, (int, float)) or not FIRST <= sent_at <= LAST:
        raise Unencodable(
            f"sent_at {sent_at!r} is no number of seconds since 1970 in the years 1 to 9999; are they milliseconds?"
        )


def too_large(id: str, to: Destination[Any], size: int, can: Capabilities) -> MessageTooLarge:
    return MessageTooLarge(
        f"message {id} to {to!r} is {size:,} bytes and {can.name} takes {can.max_body - RESERVE:,}; "
        "store the payload elsewhere and publish a reference to it"
    )


def _apply(message: Outgoing, to: Destination[Any], options: Mapping[str, Any], can: Capabilities) -> None:
    if not _OPTIONS.issuperset(options):
        strange = next(name for name in options if name not in _OPTIONS)
        raise ConfigError(f"publish has no option {strange!r} (known: {', '.join(sorted(_OPTIONS))})")
    if options.get("id") is not None:
        message.id = _check_id(options["id"])
    if options.get("headers") is not None:
        message.headers = _check_headers(options["headers"])
    delay = options.get("delay", 0.0)
    if delay:
        message.delay = _check_seconds("delay", delay)
        if to.kind == "broadcast":
            raise ConfigError(f"delay={delay!r} to {to!r}: a broadcast reaches who listens now")
        if message.delay > can.delay:
            raise CapabilityMissing(f"delay={delay!r} to {to!r}: {can.name} delays by at most {can.delay:g} s")
    ttl = options.get("ttl")
    if ttl is not None:
        if not can.ttl:
            raise CapabilityMissing(f"ttl={ttl!r} to {to!r}: {can.name} has no expiry")
        message.ttl = _check_seconds("ttl", ttl)
    priority = options.get("priority", 0)
    if priority:
        if not to.priorities:
            raise ConfigError(f"priority={priority!r} to {to!r}, which declares no priorities=")
        if not isinstance(priority, int) or isinstance(priority, bool) or not 0 <= priority < to.priorities:
            raise ConfigError(f"priority={priority!r} to {to!r}: a whole number from 0 to {to.priorities - 1}")
        message.priority = priority
    native = options.get("native")
    if native is not None and getattr(native, "kind", "") == "message":
        if native.backend != can.name:
            raise CapabilityMissing(f"native={native!r} to {to!r} is for {native.backend}, and this is {can.name}")
        message.native = native


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, str):
        raise Unencodable(f"{what} {text!r} is {type(text).__name__}, not str")
    if "\0" in text:
        raise Unencodable(f"{what} {text!r} holds a NUL character, which not every broker carries")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise Unencodable(f"{what} {text!r} is not valid Unicode: {exc.reason}") from exc


def _check_id(id: Any) -> str:
    _check_text("id", id)
    if not id or len(id) > MAX_ID:
        raise Unencodable(f"id {id[:20]!r}... has {len(id)} characters; 1 to {MAX_ID} are carried everywhere")
    return str(id)


def _check_headers(headers: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise Unencodable(f"headers {headers!r} are {type(headers).__name__}, not a mapping of text to text")
    size = 0
    for name, value in headers.items():
        _check_text("header name", name)
        _check_text(f"header {name!r}", value)
        if not name:
            raise Unencodable("a header name is empty")
        if name[:3].lower() == PREFIX:
            raise Unencodable(f"header {name!r}: names beginning with {PREFIX!r} are mqkit's own")
        size += len(name) + len(value)
    if size > MAX_HEADERS:
        raise MessageTooLarge(f"headers are {size:,} characters, at most {MAX_HEADERS:,} fit every broker")
    return dict(headers)


def _check_seconds(what: str, seconds: Any) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise ConfigError(f"{what}={seconds!r} must be a number of seconds, 0 or more")
    return float(seconds)
