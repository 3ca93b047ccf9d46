"""Replies: what SQS answers to the calls that carry messages, as botocore would give it; pure. What nobody reads is left out."""

from __future__ import annotations

from typing import Any, Required, TypedDict

import msgspec


class _Attribute(TypedDict, total=False):
    DataType: str
    StringValue: str
    BinaryValue: bytes  # travels as base64


class _Message(TypedDict, total=False):
    MessageId: Required[str]
    ReceiptHandle: Required[str]
    Body: Required[str]
    Attributes: dict[str, str]
    MessageAttributes: dict[str, _Attribute]


class _Done(TypedDict):
    Id: str


class _Refused(TypedDict, total=False):
    Id: Required[str]
    Code: str
    Message: str


class _Received(TypedDict, total=False):
    Messages: list[_Message]


class _Batch(TypedDict, total=False):
    Successful: list[_Done]
    Failed: list[_Refused]


_received = msgspec.json.Decoder(_Received)
_batch = msgspec.json.Decoder(_Batch)


def read(operation: str, content: bytes) -> dict[str, Any]:
    """
    Args:
        operation: As boto3 names it.

    Raises:
        MsgspecError, UnicodeDecodeError, RecursionError: It is none of these answers.
    """
    decoder: msgspec.json.Decoder[Any] = _received if operation == "receive_message" else _batch
    try:
        reply = decoder.decode(content)
    except msgspec.ValidationError:
        # What is null is not there. Source: Smithy, AWS JSON 1.0 protocol
        reply = msgspec.convert(_without_nulls(msgspec.json.decode(content)), decoder.type)
    return dict(reply)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_without_nulls(each) for each in value if each is not None]
    return value
