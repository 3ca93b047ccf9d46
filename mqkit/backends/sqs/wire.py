"""Messages as SQS and SNS carry them, and back; pure."""

from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from mqkit.backends.base import Address, Outgoing, Received
from mqkit.backends.sqs.names import fifo_id
from mqkit.envelope import Envelope

OURS = "mqkit"  # the attribute with everything that is not a header of the user's
HEADERS = 9  # attributes for those: AWS takes ten in all
PROBE = "mqkit-probe"  # the attribute by which a listener hears that it listens
_TYPE = "String"
_FIELDS = ("DataType", "StringValue", "BinaryValue")  # of an attribute, that it may be sent with

# What SQS takes as text. Source: AWS SQS API, SendMessage, MessageBody
_UNFIT = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PLAIN = bytes(octet for octet in range(128) if _UNFIT.match(chr(octet)) is None)  # most bodies have nothing else
# Source: AWS SQS Developer Guide, message attributes; `mqkit` is ours
_NAME = re.compile(r"(?!aws\.|amazon\.|mqkit)(?!\.)(?!.*\.\.)[A-Za-z0-9_.-]{1,255}(?<!\.)", re.IGNORECASE)

_handles = itertools.count(1)


class Head(msgspec.Struct, omit_defaults=True, gc=False):
    """What travels in the attribute `mqkit`."""

    id: str
    envelope: Envelope = msgspec.field(default_factory=Envelope)
    key: str | None = None
    headers: dict[str, str] = {}  # those that are no attributes of their own
    encoding: str = ""  # of the body: base64, or none
    due: float = 0.0  # epoch seconds: until then it is delayed once more
    expires: float | None = None  # epoch seconds


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Head).decode


class Native(NamedTuple):
    """What a client of SQS would see of a message; `Message.native`."""

    queue: str
    message_id: str
    receipt_handle: str
    attributes: Mapping[str, str]
    message_attributes: Mapping[str, Any]


class Packed(NamedTuple):
    """A message as text and attributes."""

    body: str
    attributes: Mapping[str, Mapping[str, Any]]  # as AWS writes them
    size: int


def pack(message: Outgoing, now: float, *, hop: int) -> Packed:
    """
    Args:
        now: The publisher's clock, from which delay and ttl count.
        hop: Longest seconds of one delay; what waits longer carries the moment it is due.
    """
    body, encoding = _text(message.body)
    native = {name: value for name, value in message.headers.items() if _is_native(name, value)}
    if len(native) > HEADERS:
        native = dict(itertools.islice(native.items(), HEADERS))
    due = now + message.delay
    head = Head(
        id=message.id,
        envelope=message.envelope,
        key=message.key,
        headers={name: value for name, value in message.headers.items() if name not in native}
        if len(native) < len(message.headers)
        else {},
        encoding=encoding,
        due=due if message.delay > hop else 0.0,
        expires=None if message.ttl is None else due + message.ttl,
    )
    return _packed(body, {name: _attribute(value) for name, value in {**native, OURS: _json(head)}.items()})


def repack(raw: Mapping[str, Any]) -> Packed:
    """A message as it was received, to be sent on."""
    attributes = {
        name: {field: value[field] for field in _FIELDS if field in value}
        for name, value in raw.get("MessageAttributes", {}).items()
    }
    return _packed(raw["Body"], attributes)


def _packed(body: str, attributes: Mapping[str, Mapping[str, Any]]) -> Packed:
    size = len(body.encode())
    for name, attribute in attributes.items():
        size += len(name)
        for value in attribute.values():
            size += len(value.encode() if isinstance(value, str) else value)
    return Packed(body, attributes, size)


def seconds(delay: float, hop: int) -> int:
    """A delay as SQS takes it: never too short, and no longer than one hop."""
    return min(hop, math.ceil(delay)) if delay > 0 else 0


def group_id(message: Outgoing) -> str:
    """
    The ordering group. A copy that is handed out again has one of its own: where there are such copies nobody asked for
    order, and it must not wait for others.
    """
    if message.key is None or message.envelope.attempt > 1:
        return fifo_id(message.id)
    return fifo_id(message.key)


def deduplication_id(message: Outgoing) -> str:
    """
    Within five minutes SQS drops what has the id of something before it: a publish that is repeated, never another copy.

    The copies of one message differ in their attempts, and those of the message that was replayed meanwhile in the moment
    of the first failure.
    """
    if message.envelope.attempt == 1:
        return fifo_id(message.id)
    return fifo_id(f"{message.id}:{message.envelope.attempt}:{message.envelope.since}")


def head_of(raw: Mapping[str, Any]) -> Head | None:
    """None where a foreign client sent it, or something unreadable."""
    text = raw.get("MessageAttributes", {}).get(OURS, {}).get("StringValue")
    if text is None:
        return None
    try:
        return _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None


def received(address: Address, queue: str, raw: Mapping[str, Any], head: Head | None, lease_until: float) -> Received:
    """
    Args:
        raw: The message as boto3 returns it.
        lease_until: By `time.monotonic`.
    """
    system: Mapping[str, str] = raw.get("Attributes", {})
    attributes: Mapping[str, Any] = raw.get("MessageAttributes", {})
    native = Native(queue, raw["MessageId"], raw["ReceiptHandle"], system, attributes)
    headers = {
        name: value["StringValue"] for name, value in attributes.items() if name != OURS and "StringValue" in value
    }
    returns = max(0, int(system.get("ApproximateReceiveCount", 1)) - 1)
    if head is None:
        # A foreign client: the group it chose is the key.
        return Received(
            next(_handles), address, raw["MessageId"], raw["Body"].encode(), system.get("MessageGroupId"), headers,
            Envelope(), lost=returns, lease_until=lease_until, native=native,
        )  # fmt: skip
    envelope = head.envelope
    headers.update(head.headers)
    return Received(
        next(_handles), address, head.id or raw["MessageId"], _octets(raw["Body"], head.encoding), head.key, headers,
        envelope, envelope.attempt, None, returns, 0, envelope.since or None, head.expires, 0, lease_until, native,
    )  # fmt: skip


def as_looked_at(native: Native) -> Native:
    """What is the same at every look."""
    attributes = {name: value for name, value in native.attributes.items() if name != "ApproximateReceiveCount"}
    return native._replace(receipt_handle="", attributes=attributes)


def once_more(received: Received, **changes: Any) -> Received:
    """The same message as another hand-out."""
    return msgspec.structs.replace(received, handle=next(_handles), **changes)


def _text(body: bytes) -> tuple[str, str]:
    """As text, and how it is encoded: what is no text, and what SQS would not take, in base64."""
    if body and not body.translate(None, _PLAIN):  # six times as fast as to search it
        return body.decode(), ""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and _UNFIT.search(text) is None:
        return text, ""
    return base64.b64encode(body).decode() or "=", "base64"


def _octets(text: str, encoding: str) -> bytes:
    if encoding != "base64":
        return text.encode()
    try:
        return base64.b64decode(text, validate=True) if text != "=" else b""
    except ValueError:  # a foreign client sent the attributes on, with a body of its own
        return text.encode()


def _json(head: Head) -> str:
    text = _encode(head).decode()
    # Escaped, any character passes.
    return text if text.isascii() else json.dumps(json.loads(text))


def _is_native(name: str, value: str) -> bool:
    return bool(value) and _NAME.fullmatch(name) is not None and _UNFIT.search(value) is None


def _attribute(value: str) -> dict[str, str]:
    return {"DataType": _TYPE, "StringValue": value}
