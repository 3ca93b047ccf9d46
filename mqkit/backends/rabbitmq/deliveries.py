"""
The frames of a delivery, decoded at once. pika cuts what has arrived anew for every frame and looks each up by its class;
that takes three times as long. What is unusual is left to pika, and everything is if a sample comes out differently here
(`SOUND`).
"""

from __future__ import annotations

import functools
import struct
from typing import Any, NamedTuple

import pika
from pika import frame, spec

_METHOD, _HEADER, _BODY = 1, 2, 3  # kinds of frames
_END = 0xCE  # the last byte of each
_START = struct.Struct(">BHL")  # kind, channel, size
_OVERHEAD = _START.size + 1  # bytes of a frame around its payload
_DELIVER = 60 << 16 | 60  # class and method
_CONTENT = struct.Struct(">HHQH")  # class, weight, size of the body, which properties are there
_LONG = struct.Struct(">L")
_NUMBERS = {0x49: struct.Struct(">i"), 0x6C: struct.Struct(">q")}  # by "I" and "l"
_TAG = struct.Struct(">Q")
_PROPERTIES = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 11 | 1 << 10 | 1 << 9 | 1 << 7 | 1 << 5  # that are decoded here


class Delivery(NamedTuple):
    channel: int
    method: Any  # pika's Basic.Deliver
    properties: pika.BasicProperties
    body: bytes
    end: int  # where the next frame begins


class Incomplete(Exception):
    """The rest of the delivery has not arrived."""


def size(data: bytes, at: int) -> int | None:
    """Of the frame that begins here, in bytes; None if it is not there in full."""
    if len(data) - at < _OVERHEAD:
        return None
    whole = _START.unpack_from(data, at)[2] + _OVERHEAD
    return whole if len(data) - at >= whole else None


def read(data: bytes, at: int) -> Delivery | None:
    """
    The delivery whose first frame begins here.

    Returns:
        None: Something else begins here, or a delivery that is left to pika: one of several body frames, one with
            properties that mqkit does not write, or with names that are not UTF-8.

    Raises:
        Incomplete
    """
    try:
        kind, channel, length = _START.unpack_from(data, at)
        at += _START.size
        if kind != _METHOD or _LONG.unpack_from(data, at)[0] != _DELIVER:
            return None
        header = at + length + 1
        kind, number, properties_length = _START.unpack_from(data, header)
        if kind != _HEADER or number != channel:
            return None
        content = header + _START.size
        _, _, body_length, flags = _CONTENT.unpack_from(data, content)
        end = start = content + properties_length + 1
        if flags & ~_PROPERTIES:
            return None
        if body_length:
            kind, number, length = _START.unpack_from(data, end)
            if kind != _BODY or number != channel or length != body_length:
                return None
            start += _START.size
            end = start + body_length + 1
    except struct.error:
        raise Incomplete from None
    if end > len(data):
        raise Incomplete
    if not data[header - 1] == data[content + properties_length] == data[end - 1] == _END:
        return None
    try:
        properties = _properties(data, content + _CONTENT.size, flags)
        method = _method(data, at + _LONG.size, header - 1)
    except (UnicodeDecodeError, IndexError, struct.error):
        return None
    return None if properties is None else Delivery(channel, method, properties, data[start : start + body_length], end)


def without_headers(data: bytes, at: int) -> Any:
    """pika's frame for the one that begins here, but for the table of headers; None: it is not one that has them."""
    kind, channel, length = _START.unpack_from(data, at)
    if kind != _HEADER:
        return None
    at += _START.size
    _, _, body_length, flags = _CONTENT.unpack_from(data, at)
    if not flags & 1 << 13:
        return None
    end = at + length
    start = table = at + _CONTENT.size
    for bit in (15, 14):  # what stands before them
        if flags & 1 << bit:
            table += 1 + data[table]
    rest = table + _LONG.size + _LONG.unpack_from(data, table)[0]
    bare = (flags & ~(1 << 13)).to_bytes(2, "big") + data[start:table] + data[rest:end]
    return frame.Header(channel, body_length, pika.BasicProperties().decode(bare))


def _method(data: bytes, at: int, end: int) -> Any:
    tag = at + 1 + data[at]
    redelivered, exchange, key = _place(data[tag + _TAG.size : end])
    return spec.Basic.Deliver(_text(data[at + 1 : tag]), _TAG.unpack_from(data, tag)[0], redelivered, exchange, key)


@functools.lru_cache(maxsize=1024)
def _place(data: bytes) -> tuple[bool, str, str]:
    """Whether it was delivered before, its exchange and its routing key."""
    key = 2 + data[1]
    return bool(data[0] & 1), data[2:key].decode(), data[key + 1 : key + 1 + data[key]].decode()


@functools.lru_cache(maxsize=1024)
def _text(data: bytes) -> str:
    return data.decode()


def _properties(data: bytes, at: int, flags: int) -> pika.BasicProperties | None:
    """None: a header has a value that mqkit does not write."""
    texts: list[str | None] = [None] * 16  # by bit
    headers, priority = None, None
    mode: Any = None  # pika wants 1 or 2, and takes what a server sends
    if flags & 1 << 15:
        texts[15], at = _short(data, at)
    if flags & 1 << 13:
        headers = {}
        end = at + _LONG.size + _LONG.unpack_from(data, at)[0]
        at += _LONG.size
        while at < end:
            name, at = _short(data, at)
            kind = data[at]
            if kind == 0x53:  # "S", a long string
                start = at + 1 + _LONG.size
                at = start + _LONG.unpack_from(data, at + 1)[0]
                try:
                    headers[name] = data[start:at].decode()
                except UnicodeDecodeError:
                    return None
            elif kind in _NUMBERS:  # the server's counts
                headers[name] = _NUMBERS[kind].unpack_from(data, at + 1)[0]
                at += 1 + _NUMBERS[kind].size
            else:
                return None
    if flags & 1 << 12:
        mode = data[at]
        at += 1
    if flags & 1 << 11:
        priority = data[at]
        at += 1
    for bit in (10, 9, 7, 5):
        if flags & 1 << bit:
            texts[bit], at = _short(data, at)
    return pika.BasicProperties(
        texts[15], None, headers, mode, priority, texts[10], texts[9], None, texts[7], None, texts[5]
    )


def _short(data: bytes, at: int) -> tuple[str, int]:
    start = at + 1
    end = start + data[at]
    return data[start:end].decode(), end


def _agrees_with_pika() -> bool:
    method = spec.Basic.Deliver("ctag", 7, True, "exchange", "key")
    sample = pika.BasicProperties(
        content_type="a", headers={"b": "ü", "i": 2, "l": 1 << 40}, delivery_mode=2, priority=3, correlation_id="c",
        reply_to="d", message_id="e", type="f",
    )  # fmt: skip
    frames = (
        frame.Method(9, method).marshal() + frame.Header(9, 5, sample).marshal() + frame.Body(9, b"hello").marshal()
    )
    theirs = Delivery(9, method, sample, b"hello", len(frames))
    return read(frames, 0) == theirs


SOUND = _agrees_with_pika()
