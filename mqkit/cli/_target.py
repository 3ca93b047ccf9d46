"""Names on the command line: `emails`, `orders/billing`, `topic:orders`, `broadcast:ticks`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from mqkit.backends.base import Address, Kind
from mqkit.codecs import RAW
from mqkit.destinations import Broadcast, Queue, Topic, check_name
from mqkit.errors import ConfigError

_KINDS: tuple[Kind, ...] = ("topic", "broadcast")


def address_of(name: str) -> Address:
    """Raises `ConfigError` for what is no name; `str` of the result is the name again."""
    for kind in _KINDS:
        if name.startswith(f"{kind}:"):
            return Address(kind, check_name(name.removeprefix(f"{kind}:"), kind))
    if "/" in name:
        topic, _, group = name.partition("/")
        return Address("topic", check_name(topic, "topic"), check_name(group, "group"))
    return Address("queue", check_name(name, "queue"))


def destination_of(name: str) -> Address:
    """Where one can publish: anything but a single group."""
    address = address_of(name)
    if address.group:
        raise ConfigError(f"{name!r} is one group; publish to its topic: topic:{address.name}")
    return address


def dead_source_of(name: str) -> Address:
    """What has dead letters: a queue or a group."""
    address = address_of(name)
    if address.kind == "broadcast":
        raise ConfigError(f"{name!r} is a broadcast, which is at most once and has no dead letters")
    if address.kind == "topic" and not address.group:
        raise ConfigError(f"{name!r} is a topic; dead letters belong to its groups: {address.name}/GROUP")
    return address


def value_of(address: Address) -> Any:
    """The destination as the API takes it. Its options on the broker are not known here, so it declares nothing."""
    if address.kind == "broadcast":
        return Broadcast(address.name, codec=RAW)
    return (Topic if address.kind == "topic" else Queue)(address.name, codec=RAW, declare=False)


def nearest(address: Address, existing: Iterable[Address]) -> str | None:
    """What somebody who wrote this address probably meant: the same name as another kind, or one spelled alike."""
    names = {str(one): one for one in existing if not one.dead}
    for name, one in names.items():
        if one.name == address.name and one != address:
            return f"topic:{one.name}" if one.group and not address.group else name
    near = difflib.get_close_matches(str(address), names, n=1)
    return near[0] if near else None
