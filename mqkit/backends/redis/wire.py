"""Messages as entries of a stream and back, commands as bytes; pure."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from mqkit.backends.base import Address, Outgoing, Received
from mqkit.backends.redis.keys import Keys, field_of
from mqkit.envelope import Attempt, Count, Envelope, Moment

Argument = bytes | str | int | float


class Entry(NamedTuple):
    """A message as a native client finds it: `XRANGE stream id id`."""

    stream: str
    id: str


class Head(msgspec.Struct, omit_defaults=True, gc=False):
    """What travels beside id, key and body: the field `h`, a JSON object."""

    headers: dict[str, str] = {}
    envelope: Envelope = msgspec.field(default_factory=Envelope)
    expires: float | None = None  # by the server's clock
    attempt: Attempt | None = None  # None: as the envelope says
    since: Moment | None = None
    deliveries: Count = 0  # before it was put where it is now
    lost: Count = 0
    solo: Count = 0


class Note(msgspec.Struct, array_like=True, gc=False):
    """What an ordered source keeps beside a message that was released in its place."""

    attempt: int
    since: float | None
    deliveries: int
    solo: int


_encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_note = msgspec.json.Decoder(Note).decode
_handles = itertools.count(1)
_new_entry = tuple.__new__  # a third of what calling the class costs


# -- commands ----------------------------------------------------------------------------------------------------------


def pack(*arguments: Argument) -> bytes:
    """One command as the protocol writes it."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        if isinstance(argument, str):
            argument = argument.encode()
        elif not isinstance(argument, bytes):
            argument = repr(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(argument), argument))
    return b"".join(parts)


def pack_adding(stream: str) -> Callable[[Outgoing, bytes], bytes]:
    """Makes the commands that add messages to this stream, if it exists."""
    name = stream.encode()
    beginning = b"*12\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$10\r\nNOMKSTREAM\r\n$1\r\n*\r\n$2\r\nid\r\n" % (len(name), name)

    def adding(message: Outgoing, head: bytes) -> bytes:
        id, key, body = message.id.encode(), (message.key or "").encode(), message.body
        return b"%b$%d\r\n%b\r\n$3\r\nkey\r\n$%d\r\n%b\r\n$1\r\nh\r\n$%d\r\n%b\r\n$4\r\nbody\r\n$%d\r\n%b\r\n" % (
            beginning, len(id), id, len(key), key, len(head), head, len(body), body,
        )  # fmt: skip

    return adding


def head_of(message: Outgoing, now: float) -> bytes:
    """`now` by the server's clock, from which the time to live is counted."""
    if message.ttl is None:
        return _encode(Head(message.headers, message.envelope))
    return _encode(Head(message.headers, message.envelope, now + message.delay + message.ttl))


def copy_of(message: Outgoing, keys: Keys, now: float, dedupe: float = 0.0) -> list[Argument]:
    """The arguments of one message for `copy` in the scripts; its id is remembered for `dedupe` seconds, if any."""
    address = message.address
    where, hash, after = keys.landing(address), "", 0
    if message.delay > 0:
        where, hash = keys.waiting(address)
        after = round(message.delay * 1000)
    kind = "topic" if address.kind == "topic" and not address.group else ""
    return [
        keys.registry, field_of(address), where, hash, after, kind,
        message.id, message.key or "", head_of(message, now), message.body,
        *((keys.seen(address, message.id), max(1, round(dedupe * 1000))) if dedupe else ("", "")),
    ]  # fmt: skip


def released(
    delivery: Received, where: str, hash: str, after: float, attempt: int | None, since: float | None
) -> list[Argument]:
    """A released message as a copy of itself, with its counts in its head."""
    failed = attempt is not None
    head = Head(
        delivery.headers,
        delivery.envelope,
        delivery.expires_at,
        attempt if attempt is not None else delivery.attempt,
        since if failed else delivery.since,
        delivery.deliveries or 0,
        0 if failed else delivery.lost,
        0 if failed else delivery.solo,
    )
    encoded, milliseconds = _encode(head), round(after * 1000) if hash else 0
    return ["", "", where, hash, milliseconds, "", delivery.id, delivery.key or "", encoded, delivery.body, "", ""]


def note_of(delivery: Received, count: int, due: float, attempt: int | None, since: float | None) -> bytes:
    """What is kept beside a message that is released in its place, after which the group counts `count`."""
    failed = attempt is not None
    note = Note(
        attempt if attempt is not None else delivery.attempt,
        since if failed else delivery.since,
        (delivery.deliveries or 0) - count,
        0 if failed else delivery.solo,
    )
    return b"%d %b" % (round(due * 1000), _encode(note))


# -- entries -----------------------------------------------------------------------------------------------------------


def received(
    address: Address,
    stream: str,
    id: bytes,
    fields: Sequence[bytes],
    count: int = 1,
    died_alone: int = 0,
    note: bytes = b"",
) -> Received:
    """An entry as a delivery; `count` is what the group counts for it, this hand-out included."""
    entry = _new_entry(Entry, (stream, id.decode()))
    if len(fields) == 8 and fields[0] == b"id" and fields[4] == b"h" and fields[6] == b"body":
        try:
            head, message_id, key = _decode_head(fields[5]), fields[1].decode(), fields[3].decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _foreign(address, entry, fields, count, died_alone, note)
        envelope = head.envelope
        attempt, since, before, solo = head.attempt, head.since, head.deliveries, head.solo
        if note:
            noted = _decode_note(note.partition(b" ")[2])
            attempt, since, before, solo = noted.attempt, noted.since, noted.deliveries, noted.solo
        return Received(
            next(_handles), address, message_id, fields[7], key or None, head.headers, envelope,
            envelope.attempt if attempt is None else attempt, before + count, head.lost + count - 1,
            died_alone or solo, since, head.expires, 0, None, entry,
        )  # fmt: skip
    return _foreign(address, entry, fields, count, died_alone, note)


_BODIES = (b"body", b"data", b"payload", b"message")


def _foreign(
    address: Address, entry: Entry, fields: Sequence[bytes], count: int, died_alone: int, note: bytes = b""
) -> Received:
    """Of a client that knows nothing of mqkit: what looks like a body is the body, the rest are headers."""
    pairs = list(zip(fields[::2], fields[1::2], strict=False))
    table = dict(pairs)
    # The first, by which the scripts have locked it.
    key = next((_text(value) for name, value in pairs if name == b"key" and value), None)
    body = next((table.pop(name) for name in _BODIES if name in table), None)
    if body is None and len(table) == 1:
        body = table.popitem()[1]
    elif body is None:
        body = _encode({_text(name): _text(value) for name, value in table.items()})
        table = {}
    id = _text(table.pop(b"id", b"")) or entry.id
    table.pop(b"key", None)
    headers = {_text(name): _text(value) for name, value in table.items()}
    noted = _decode_note(note.partition(b" ")[2]) if note else Note(1, None, 0, 0)
    return Received(
        next(_handles), address, id, body, key, headers, Envelope(), noted.attempt, noted.deliveries + count, count - 1,
        died_alone or noted.solo, noted.since, None, 0, None, entry,
    )  # fmt: skip


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


def unpacked(packed: bytes) -> list[bytes]:
    """A delayed message as `copy` in the scripts packs it: a MessagePack array of raw strings, whatever is in them."""
    values, at = [], 1
    while at < len(packed):
        kind = packed[at]
        if kind & 0xE0 == 0xA0:
            size, at = kind & 0x1F, at + 1
        else:
            width = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}[kind]
            size, at = int.from_bytes(packed[at + 1 : at + 1 + width], "big"), at + 1 + width
        values.append(packed[at : at + size])
        at += size
    return values


# -- broadcasts --------------------------------------------------------------------------------------------------------


class _LiveHead(msgspec.Struct, omit_defaults=True, gc=False):
    mq: int  # the first thing in it, by which our messages are told from others
    id: str
    key: str | None = None
    headers: dict[str, str] = {}
    envelope: Envelope = msgspec.field(default_factory=Envelope)
    expires: float | None = None


_decode_live = msgspec.json.Decoder(_LiveHead).decode
_LIVE = b'{"mq":1,'


def to_live(message: Outgoing, now: float) -> bytes:
    """A line of JSON, then the body as it is."""
    expires = None if message.ttl is None else now + message.ttl
    head = _LiveHead(1, message.id, message.key, message.headers, message.envelope, expires)
    return _encode(head) + b"\n" + message.body


def from_live(address: Address, payload: bytes, number: int) -> Received:
    line, _, body = payload.partition(b"\n")
    head = None
    if line.startswith(_LIVE):
        with contextlib.suppress(msgspec.DecodeError, RecursionError):
            head = _decode_live(line)
    if head is None:
        return Received(next(_handles), address, f"live-{number}", payload, None, {}, Envelope(), deliveries=1)
    return Received(
        next(_handles), address, head.id, body, head.key, head.headers, head.envelope, head.envelope.attempt, 1,
        expires_at=head.expires,
    )  # fmt: skip
