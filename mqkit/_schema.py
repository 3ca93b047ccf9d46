"""The payload type of a destination with its codec, compiled: payload to (type name, body) and back."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from mqkit._text import text_of
from mqkit.codecs import JSON, MSGPACK, Codec, is_pydantic
from mqkit.envelope import Envelope
from mqkit.errors import ConfigError, Undecodable, Unencodable

Decode = Callable[[bytes], Any]


class Schema:
    """
    Encodes and decodes the payloads of one destination.

    A payload of a class (dataclass, Struct, pydantic model) travels with its class name, or its msgspec tag, as the
    message's type; so a union needs no tag inside the body. Builtin types travel without a name.
    """

    def __init__(self, name: str, type: Any, codec: Codec) -> None:
        self._name = name
        self._type = type
        self._codec = codec
        self._members = {member: _wire_name(member) for member in _members(type)}
        named = {wire: member for member, wire in self._members.items() if wire}
        if len(named) != sum(1 for wire in self._members.values() if wire):
            raise ConfigError(f"{name!r}: two types of {type!r} share a name on the wire; give one a msgspec tag")
        self._encode = codec.encoder(type)
        self._accepts: dict[Any, str] = {}  # type(payload) -> wire name, grown by use
        self.content_type = codec.content_type
        self._by_name = {wire: codec.decoder(member) for wire, member in named.items()}
        plain = [member for member, wire in self._members.items() if not wire]
        # A body without a type name (a foreign sender's) is tried as the whole type where msgspec can tell its members
        # apart by their shape, else as the one member there is.
        self._anonymous = self._whole(codec, plain)
        self._own = {**self._by_name, "": self._anonymous}  # type name to decoder, of bodies in this codec
        self._foreign: dict[
            str, Decode
        ] = {}  # content types other than the codec's own, compiled when they are first met

    def encode(self, payload: Any) -> tuple[str, bytes]:
        """Raises `Unencodable` when the payload is not of the destination's type or cannot be serialised."""
        wire = self._accepts.get(payload.__class__)
        if wire is None:
            wire = self._admit(payload)
        try:
            return wire, self._encode(payload)
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
            raise Unencodable(
                f"payload {payload.__class__.__name__} to {self._name!r} cannot be encoded as "
                f"{self._codec.content_type}: {exc}"
            ) from exc

    def decode(self, body: bytes, envelope: Envelope) -> Any:
        """Raises `Undecodable` when the body does not fit or its type is not one of the destination's."""
        try:
            if envelope.content_type == self.content_type:
                decode = self._own.get(envelope.type) or self._untyped(envelope)
            else:
                decode = self._other(envelope)
            return decode(body)
        except Undecodable:
            raise
        except Exception as exc:  # a payload class may raise what it likes when it is made
            why = text_of(exc) or type(exc).__name__
            raise Undecodable(f"body of {len(body)} bytes does not fit {self._name!r}: {why}") from exc

    def _admit(self, payload: Any) -> str:
        """The wire name of a payload whose class was not met before. Raises `Unencodable` for a foreign class."""
        cls = payload.__class__
        for member, wire in self._members.items():
            if _is_instance(payload, member):
                if isinstance(cls, type):
                    self._accepts[cls] = wire
                return wire
        raise Unencodable(f"payload {cls.__name__} is not of the type of {self._name!r}, which is {_show(self._type)}")

    def _untyped(self, envelope: Envelope) -> Decode:
        if envelope.type and self._by_name:
            known = ", ".join(sorted(self._by_name))
            raise Undecodable(f"type {envelope.type!r} is not one of {self._name!r} ({known})")
        return self._anonymous

    def _other(self, envelope: Envelope) -> Decode:
        """A body in another of the structured codecs, by its content type; anything else is the codec's own affair."""
        codec = next((c for c in (JSON, MSGPACK) if c.content_type == envelope.content_type), None)
        if codec is None or self._codec not in (JSON, MSGPACK):
            return self._own.get(envelope.type) or self._untyped(envelope)
        key = f"{envelope.content_type} {envelope.type}"
        if key not in self._foreign:
            other = Schema(self._name, self._type, codec)
            self._foreign[key] = other._by_name.get(envelope.type) or other._untyped(envelope)
        return self._foreign[key]

    def _whole(self, codec: Codec, plain: list[Any]) -> Decode:
        if len(self._members) == 1:
            return codec.decoder(next(iter(self._members)))
        try:
            return codec.decoder(self._type)
        except ConfigError:
            if plain:
                return codec.decoder(typing.Union[tuple(plain)])  # noqa: UP007  built at run time
            return self._ambiguous

    def _ambiguous(self, body: bytes) -> Any:
        raise Undecodable(f"message without a type name, and {self._name!r} holds {_show(self._type)}")


def is_wider(annotation: Any, payload: Any) -> bool:
    """May a parameter annotated so receive every payload of this type?"""
    if annotation in (Any, object) or annotation == payload:
        return True
    wide = _members(annotation)
    return all(any(_covers(one, member) for one in wide) for member in _members(payload))


def _covers(annotation: Any, member: Any) -> bool:
    if annotation in (Any, object) or annotation == member:
        return True
    plain, other = typing.get_origin(annotation) or annotation, typing.get_origin(member) or member
    if isinstance(plain, type) and isinstance(other, type):
        # A bare container covers its parametrised form; two different parametrised forms are left to the type checker.
        return issubclass(other, plain) and (typing.get_origin(annotation) is None or not typing.get_args(member))
    return member is Any


def _members(type_: Any) -> list[Any]:
    if typing.get_origin(type_) in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(type_) for member in _members(part)]
    if type(type_).__name__ == "TypeAliasType":
        return _members(type_.__value__)
    return [type_]


def _wire_name(member: Any) -> str:
    cls = typing.get_origin(member) or member
    if not isinstance(cls, type):
        return ""
    if issubclass(cls, msgspec.Struct):
        tag = cls.__struct_config__.tag
        return str(tag) if tag is not None else cls.__name__
    if hasattr(cls, "__dataclass_fields__") or is_pydantic(cls):
        return cls.__name__
    return ""


def _is_instance(payload: Any, member: Any) -> bool:
    if member is Any:
        return True
    if member is None:
        return payload is None
    if typing.is_typeddict(member):
        return isinstance(payload, dict)
    cls = typing.get_origin(member) or member
    if cls is typing.Literal:
        return payload in typing.get_args(member)
    if cls is float:
        return isinstance(payload, (int, float)) and not isinstance(payload, bool)
    if cls is bytes:
        return isinstance(payload, (bytes, bytearray, memoryview))
    try:
        return isinstance(payload, cls)
    except TypeError:  # a form without instances, such as a NewType or a Protocol: the codec will judge
        return True


def _show(type_: Any) -> str:
    return " | ".join(getattr(member, "__name__", repr(member)) for member in _members(type_))
