"""Payloads to bytes and back: JSON, MessagePack, raw bytes, text. One codec per destination, compiled once per type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from mqkit.errors import ConfigError


class Codec(Protocol):
    """How the payloads of a destination become bytes. Both methods compile once; what they return runs per message."""

    content_type: str

    def encoder(self, type: Any) -> Callable[[Any], bytes]:
        """Raises `ConfigError` for a type this codec can never carry."""
        ...

    def decoder(self, type: Any) -> Callable[[bytes], Any]:
        """What it returns raises `ValueError` or `TypeError` for a body that does not fit."""
        ...


class _Structured:
    """JSON and MessagePack through msgspec; pydantic models validate and dump themselves."""

    def __init__(self, content_type: str, encoder: Any, decoder: Any) -> None:
        self.content_type = content_type
        self._encoder = encoder
        self._decoder = decoder

    def __repr__(self) -> str:
        return f"<codec {self.content_type}>"

    def encoder(self, type: Any) -> Callable[[Any], bytes]:
        encode: Callable[[Any], bytes] = self._encoder(enc_hook=_to_builtins).encode
        return encode

    def decoder(self, type: Any) -> Callable[[bytes], Any]:
        try:
            decode: Callable[[bytes], Any] = self._decoder(type, dec_hook=_from_builtins).decode
        except (TypeError, NameError) as exc:
            raise ConfigError(
                f"{type!r} cannot be carried as {self.content_type}: {exc}; use a dataclass, TypedDict, msgspec.Struct, "
                "pydantic model or builtin types, defined at module level"
            ) from exc
        return decode


class _Raw:
    """Bytes, untouched."""

    content_type = "application/octet-stream"

    def __repr__(self) -> str:
        return "<codec raw>"

    def encoder(self, type: Any) -> Callable[[Any], bytes]:
        _only(bytes, type, self)
        return _as_bytes

    def decoder(self, type: Any) -> Callable[[bytes], Any]:
        _only(bytes, type, self)
        return _as_bytes


class _Text:
    """A str as UTF-8."""

    content_type = "text/plain; charset=utf-8"

    def __repr__(self) -> str:
        return "<codec text>"

    def encoder(self, type: Any) -> Callable[[Any], bytes]:
        _only(str, type, self)
        return _utf8

    def decoder(self, type: Any) -> Callable[[bytes], Any]:
        _only(str, type, self)
        return _from_utf8


JSON: Codec = _Structured("application/json", msgspec.json.Encoder, msgspec.json.Decoder)
MSGPACK: Codec = _Structured("application/msgpack", msgspec.msgpack.Encoder, msgspec.msgpack.Decoder)
RAW: Codec = _Raw()
TEXT: Codec = _Text()


def _to_builtins(value: Any) -> Any:
    if is_pydantic(type(value)):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not serialisable")


def _from_builtins(type: Any, value: Any) -> Any:
    if is_pydantic(type):
        return type.model_validate(value)
    raise TypeError(f"{type!r} cannot be built from {value.__class__.__name__}")


def is_pydantic(type: Any) -> bool:
    """Is it a pydantic model? Asked without importing pydantic."""
    return hasattr(type, "__pydantic_validator__") and hasattr(type, "model_validate")


def _only(wanted: type, type: Any, codec: Codec) -> None:
    if type is not wanted and type is not Any:
        raise ConfigError(f"{codec!r} carries {wanted.__name__}, not {type!r}; choose another codec or payload type")


def _as_bytes(value: Any) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError(f"expected bytes, got {type(value).__name__}")
    return bytes(value)


def _utf8(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"expected str, got {type(value).__name__}")
    return value.encode()


def _from_utf8(body: bytes) -> str:
    return body.decode()
