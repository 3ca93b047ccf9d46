"""What travels beside a body and the user's headers, and its form as plain text headers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args

import msgspec

# What a foreign sender may claim. Other numbers could not be counted on, written again, or shown.
Count = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=255)]
FIRST, LAST = -62_135_596_800, 253_402_300_799  # epoch seconds: the years 1 to 9999
Moment = Annotated[float, msgspec.Meta(ge=FIRST, le=LAST)]

PREFIX = "mq-"  # reserved: user headers may not start with it, in any case


class Dead(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """
    Why and when a message became a dead letter, and what its place among the dead letters cannot keep of it.

    `origin` is the address that gave it up, `died_at` epoch seconds, `priority` what it had there.
    """

    reason: str
    error_type: str = ""
    attempts: Count = 0
    origin: str = ""
    died_at: Moment = 0.0
    priority: Priority = 0


class Envelope(msgspec.Struct, omit_defaults=True, gc=False):
    """The framework's own fields of one message. Never changed once the message is published; copies get a new one."""

    type: str = ""  # class name or declared tag of the payload; "" for plain types and foreign messages
    content_type: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    reply_to: str = ""
    sent_at: Moment = 0.0  # epoch seconds, the sender's wall clock: information only, nothing is decided by it
    attempt: Attempt = 1  # where the backend keeps no attempts of its own, the copy carries the number
    since: Moment = 0.0  # and the moment of the first failure, by the backend's clock; 0 before there was one
    dead: Dead | None = None


def to_headers(envelope: Envelope) -> dict[str, str]:
    """The envelope as text headers, absent fields left out; for systems whose messages carry a flat table."""
    names = _NAMES
    headers: dict[str, str] = {}
    for field, value in msgspec.to_builtins(envelope).items():
        if value.__class__ is str:
            headers[names[field]] = value
        elif value.__class__ is dict:
            headers.update({_header(f"{field}_{part}"): str(inner) for part, inner in value.items()})
        else:
            headers[names[field]] = str(value)
    return headers


def _header(field: str) -> str:
    return f"{PREFIX}{field.replace('_', '-')}"


def from_headers(headers: Mapping[str, str]) -> tuple[Envelope, dict[str, str]]:
    """
    Split text headers into the envelope and the user's own.

    Fields that a foreign sender filled with something unreadable are dropped, never an error: the body decides whether
    a message can be handled.
    """
    user: dict[str, str] = {}
    own: dict[str, Any] = {}
    dead: dict[str, Any] = {}
    fields = _FIELDS
    for name, value in headers.items():
        field = fields.get(name)
        if field is not None:
            attribute, convert, of_dead = field
            try:
                (dead if of_dead else own)[attribute] = convert(value)
            except ValueError:
                continue
        elif not name.startswith(PREFIX):
            user[name] = value
    if "reason" in dead:
        own["dead"] = Dead(**dead)
    return Envelope(**own), user


def number_of(text: str | None) -> float | None:
    """Of a header; None where it has none that is finite."""
    try:
        number = math.nan if text is None else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounded(alias: Any) -> Callable[[str], Any]:
    kind, limits = get_args(alias)

    def convert(text: str) -> Any:
        number = kind(text)
        if not limits.ge <= number <= limits.le:
            raise ValueError(f"{number} is not between {limits.ge} and {limits.le}")
        return number

    return convert


_FROM_TEXT: dict[Any, Callable[[str], Any]] = {
    str: str,
    **{alias: _bounded(alias) for alias in (Count, Attempt, Priority, Moment)},
}


def _fields(struct: type[msgspec.Struct], prefix: str = "") -> dict[str, tuple[str, Callable[[str], Any], bool]]:
    """By header: the attribute, how to read it, and whether it is one of a dead letter."""
    return {
        _header(prefix + field.name): (field.name, _FROM_TEXT[field.type], struct is Dead)
        for field in msgspec.structs.fields(struct)
        if field.type in _FROM_TEXT
    }


_NAMES = {field: _header(field) for field in Envelope.__struct_fields__}
_FIELDS = _fields(Envelope) | _fields(Dead, "dead_")
