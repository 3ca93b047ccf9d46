"""What is registered about a destination or a source, and the comparison with what is declared."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from mqkit.backends.base import Address, Declaration, Order
from mqkit.backends.redis.keys import Keys, Unit
from mqkit.errors import TopologyMismatch
from mqkit.native import RedisQueue, RedisTopic

TRIM = 1.0  # seconds between two removals of what a topic has kept long enough


class Registered(msgspec.Struct, omit_defaults=True, frozen=True):
    """One field of the registry, as JSON."""

    keyed: bool = False
    order: Order | None = None
    retain: float = 0.0
    dedupe: float = 0.0


PLAIN = Registered()


@dataclass(frozen=True)
class Source:
    """A queue, a group or dead letters, as a receiver needs it."""

    address: Address
    unit: Unit
    ordered: bool
    retain: float  # of its topic


_decode = msgspec.json.Decoder(Registered).decode
encode_registered = msgspec.json.Encoder().encode


def decode_registered(text: bytes) -> Registered:
    return _decode(text)


def registered_of(declaration: Declaration) -> Registered:
    address, native = declaration.address, declaration.native
    consumed = address.kind == "queue" or bool(address.group)
    own = not address.group and not address.dead
    return Registered(
        keyed=declaration.keyed and not address.dead,
        order="none" if address.dead else declaration.order if consumed else None,
        retain=native.retain if own and isinstance(native, RedisTopic) else 0.0,
        dedupe=native.dedupe if own and isinstance(native, (RedisQueue, RedisTopic)) else 0.0,
    )


def compare(declaration: Declaration, have: Registered) -> None:
    """Raises `TopologyMismatch`, which names the first difference."""
    if declaration.address.dead:
        return
    want = registered_of(declaration)
    for option in ("keyed", "order", "retain", "dedupe"):
        there, here = getattr(have, option), getattr(want, option)
        if option == "order" and (there is None or here is None):
            continue  # undecided until a consumer says
        if option in ("retain", "dedupe") and declaration.native is None:
            continue  # by somebody who does not care
        if there != here:
            raise TopologyMismatch(
                f"{declaration.address} exists with {option}={there!r}, and {option}={here!r} is declared"
            )


def source_of(address: Address, keys: Keys, own: Registered, retain: float) -> Source:
    return Source(address, keys.unit(address), own.order == "key", retain)
