"""
Names of topics and consumer groups, and back; pure.

A name of Kafka has letters, digits, `.`, `_` and `-`. Each byte of anything else is written as `__` and two capital
hexadecimal digits, and so are the underscores of `__` itself. So `__` and a small letter begin our own parts, and nothing
collides, but for `a.b` and `a_b`, which Kafka itself does not take side by side.
Source: kafka.common.internals.Topic, `hasCollision`
"""

from __future__ import annotations

import hashlib
import re

from mqkit.backends.base import Address

LONGEST = 249  # characters of a topic
LANES = (0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0, 10_800.0, 86_400.0)  # seconds each lane of the ladder waits

_QUEUE, _RETRY, _DEAD, _LIVE, _SHORT = "__queue", "__retry", "__dead", "__live", "__x"
_LADDER = "mqkit__delay"
# An underscore stays only between plain characters: elsewhere it could make `__` with what is put there.
_SPECIAL = re.compile(r"[^A-Za-z0-9._-]|_(?![A-Za-z0-9.-])|(?<![A-Za-z0-9.-])_")
_INTERNAL = re.compile(r"__[a-z]")  # of Kafka itself
_PARTS = re.compile(r"(?P<name>.+?)(?:(?P<part>__queue|__retry|__dead|__live)(?:\.(?P<group>.+))?)?")


class Names:
    """
    Args:
        prefix: Begins every topic and consumer group, so that several applications share a cluster.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def topic(self, address: Address) -> str:
        """Where messages for an address are written; for a group that is what comes again for it alone."""
        name, group = _plain(address.name), f".{_plain(address.group)}" if address.group else ""
        if address.dead:
            return self._short(f"{name}{_DEAD}{group}")
        if address.kind == "broadcast":
            return self._short(f"{name}{_LIVE}")
        if address.kind == "queue":
            return self._short(f"{name}{_QUEUE}")
        return self._short(f"{name}{_RETRY}{group}" if group else name)

    def sources(self, address: Address) -> list[str]:
        """What a consumer of a queue or group reads: everybody's topic first, then what comes again."""
        if not address.group or address.dead:
            return [self.topic(address)]
        return [self.topic(address._replace(group="")), self.topic(address)]

    def group(self, address: Address) -> str:
        """The consumer group of a queue, of a group of a topic, or of those who look at dead letters."""
        name = f"{address.name}/{address.group}" if address.group else address.name
        return f"{self._prefix}{name}{'//dead' if address.dead else ''}"

    def lane(self, seconds: float) -> str:
        return f"{self._prefix}{_LADDER}.{seconds:g}s"

    @property
    def lanes(self) -> dict[str, float]:
        """The topics of the ladder, and how many seconds each waits."""
        return {self.lane(seconds): seconds for seconds in LANES}

    @property
    def relay(self) -> str:
        """The consumer group of those who move messages down the ladder."""
        return f"{self._prefix}{_LADDER}"

    @property
    def registry(self) -> str:
        """A consumer group without members, whose commits say how topics were declared."""
        return f"{self._prefix}mqkit__registry"

    def address(self, topic: str) -> Address | None:
        """Whose topic it is; None where it is none of ours, part of the ladder, or has a shortened name."""
        if not topic.startswith(self._prefix):
            return None
        plain = topic.removeprefix(self._prefix)
        found = _PARTS.fullmatch(plain)
        if found is None or _INTERNAL.match(plain) or found["name"].startswith(_LADDER) or _SHORT in topic:
            return None
        name, part, group = _original(found["name"]), found["part"], _original(found["group"] or "")
        if part == _LIVE:
            return Address("broadcast", name)
        queue = part == _QUEUE or (part == _DEAD and not group)
        return Address("queue" if queue else "topic", name, group, part == _DEAD)

    def _short(self, name: str) -> str:
        name = self._prefix + name
        if len(name) <= LONGEST:
            return name
        digest = hashlib.sha256(name.encode()).hexdigest()[:40]
        return f"{name[: LONGEST - len(_SHORT) - len(digest)]}{_SHORT}{digest}"


def lane_for(delay: float) -> float:
    """Seconds of the longest lane that is not longer than a delay; the shortest, if all are."""
    return max((seconds for seconds in LANES if seconds <= delay), default=LANES[0])


def _plain(name: str) -> str:
    return _SPECIAL.sub(lambda found: "".join(f"__{byte:02X}" for byte in found[0].encode()), name)


def _original(name: str) -> str:
    octets = re.sub(rb"__([0-9A-F]{2})", lambda found: bytes([int(found[1], 16)]), name.encode())
    return octets.decode(errors="replace")
