"""The URL of a backend, taken apart; never printed with its password."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from mqkit.errors import ConfigError

O = TypeVar("O")  # noqa: E741  an options dataclass

SECRET = "***"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Url:
    """A parsed URL. `str` and `repr` hide the password and every query option whose name speaks of a secret."""

    scheme: str
    username: str = ""
    password: str = dataclasses.field(default="", repr=False)
    host: str = ""
    port: int | None = None
    path: str = ""
    query: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Url:
        """Raises `ConfigError`, whose text holds no part of the URL that could be a password."""
        if "://" not in text:
            raise ConfigError("a backend URL looks like scheme://..., for example sqlite:///app.db or memory://")
        parts = _split(text)
        if parts is None:
            raise ConfigError(
                "the backend URL cannot be parsed; characters such as / # @ [ ] in a password must be percent-encoded"
            )
        if parts.fragment:
            raise ConfigError("the backend URL has a '#'; percent-encode it as %23 where it belongs to a password")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        query = dict(pairs)
        if len(query) != len(pairs):
            twice = next(name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1)
            raise ConfigError(f"URL option {twice!r} is given more than once")
        return cls(
            scheme=parts.scheme.lower(),
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            host=parts.hostname or "",
            port=parts.port,
            path=unquote(parts.path),
            query=query,
        )

    def __str__(self) -> str:
        credentials = f"{self.username}:{SECRET}@" if self.password else f"{self.username}@" if self.username else ""
        port = "" if self.port is None else f":{self.port}"
        shown = "&".join(f"{name}={SECRET if _secret(name) else value}" for name, value in self.query.items())
        return f"{self.scheme}://{credentials}{self.host}{port}{self.path}{'?' + shown if shown else ''}"

    __repr__ = __str__


def _split(text: str) -> SplitResult | None:
    """None where urllib refuses it, whose errors quote parts of the URL: not even as a cause may they travel on."""
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return parts


def parse_options(options: type[O], url: Url) -> O:
    """
    The query of `url` as an instance of a frozen dataclass with fields of type bool, int, float or str (or None).

    Raises:
        ConfigError: Names an unknown option and the nearest known one, or a value of the wrong type.
    """
    hints = typing.get_type_hints(options)
    values: dict[str, Any] = {}
    for name, text in url.query.items():
        if name not in hints:
            raise ConfigError(unknown("option", name, hints, where=f"{url.scheme} URL"))
        values[name] = _convert(name, text, hints[name], url.scheme)
    try:
        return options(**values)
    except ValueError as exc:
        raise ConfigError(f"{url.scheme} URL: {exc}") from exc


def unknown(what: str, name: str, known: Iterable[str], *, where: str) -> str:
    """The sentence for a name nobody knows, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{where} has no {what} {name!r}{hint} (known: {', '.join(names) or 'none'})"


_SECRETS = ("pass", "pwd", "secret", "token", "key", "auth", "credential")
_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _convert(name: str, text: str, hint: Any, scheme: str) -> Any:
    kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType] or [hint]
    if typing.get_origin(hint) is typing.Literal:
        if text not in kinds:
            raise ConfigError(unknown("value", text, kinds, where=f"{scheme} URL option {name!r}"))
        return text
    kind = kinds[0]
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        shown = SECRET if _secret(name) else repr(text)
        raise ConfigError(f"{scheme} URL option {name}={shown} is not a valid {kind.__name__}") from None


def _secret(name: str) -> bool:
    return any(word in name.lower() for word in _SECRETS)
