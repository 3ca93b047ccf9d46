"""
The names of everything the backend keeps in Redis.

All keys begin with one prefix that holds one hash tag, so that on a cluster one node has them all and a script may touch
any of them. `/` is forbidden in names of destinations and groups; here it sets apart what belongs to one of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mqkit.backends.base import Address

QUEUE_GROUP = "mqkit"  # the consumer group of a queue or of dead letters; a topic's groups carry their own names
PARKED = "~"  # the consumer that has what waits behind a locked key
WAKE = "wake/"  # before the name of a group: who is woken by new messages and leaves them in the stream

_LETTERS = {"queue": "q", "topic": "t", "broadcast": "b"}
_KINDS = {letter: kind for kind, letter in _LETTERS.items()}


def field_of(address: Address) -> str:
    """The address as the registry and all keys write it: `q:emails`, `t:orders/billing`, `q:emails/dead`."""
    name = f"{_LETTERS[address.kind]}:{address.name}"
    if address.group:
        name += f"/{address.group}"
    return f"{name}/dead" if address.dead else name


def address_of(field: str) -> Address:
    """The address behind a field of the registry. A topic has no dead letters of its own, so a group may be called dead."""
    kind = _KINDS[field[0]]
    name, *rest = field[2:].split("/")
    groups = 1 if kind == "topic" else 0
    group = rest[0] if groups and rest else ""
    return Address(kind, name, group, dead=len(rest) > groups)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Keys:
    """Of one prefix."""

    prefix: str

    @property
    def owners(self) -> str:
        return f"{self.prefix}own"

    @property
    def registry(self) -> str:
        return f"{self.prefix}d"

    def of(self, address: Address) -> str:
        """The stream of a queue, topic or dead letters, the channel of a broadcast; the stem of all keys of a group."""
        return self.prefix + field_of(address)

    def seen(self, address: Address, id: str) -> str:
        return f"{self.prefix}s:{field_of(address)}/{id}"

    def waiting(self, address: Address) -> tuple[str, str]:
        """What is not due yet: a sorted set by due time, and a hash with the messages."""
        stem = self.of(address)
        return f"{stem}/z", f"{stem}/zh"

    def landing(self, address: Address) -> str:
        """The stream that a message published to this address is added to."""
        return f"{self.of(address)}/r" if address.group and not address.dead else self.of(address)

    def unit(self, address: Address) -> Unit:
        return Unit(self.of(address), self.main(address), group_of(address), self.topic_of(address))

    def main(self, address: Address) -> str:
        return self.of(address) if address.dead else self.of(address._replace(group=""))

    def topic_of(self, address: Address) -> str | None:
        return self.of(address._replace(group="")) if address.group and not address.dead else None


def group_of(address: Address) -> str:
    return address.group if address.group and not address.dead else QUEUE_GROUP


@dataclass(frozen=True)
class Unit:
    """One source: its streams and what is kept beside them."""

    stem: str
    main: str  # what was published
    group: str
    topic: str | None  # the topic stream, shared with other groups: nothing may be deleted from it

    @property
    def side(self) -> str:
        """What comes back: released and replayed messages, delayed ones that are due."""
        return f"{self.stem}/r"

    @property
    def waiting(self) -> tuple[str, str]:
        return f"{self.stem}/z", f"{self.stem}/zh"

    @property
    def alone(self) -> str:
        """Hash: entry to how often it will have died alone, if it dies now."""
        return f"{self.stem}/s"

    @property
    def locks(self) -> str:
        """Hash: key to its holder."""
        return f"{self.stem}/l"

    @property
    def parked(self) -> str:
        """Sorted set without scores: key and entry of what waits behind a locked key."""
        return f"{self.stem}/w"

    @property
    def ready(self) -> str:
        """Sorted set: keys that nobody holds, by when their first message is due."""
        return f"{self.stem}/k"

    @property
    def notes(self) -> str:
        """Hash: entry to due time and counts of what was released in its place."""
        return f"{self.stem}/n"

    @property
    def wake_group(self) -> str:
        return WAKE + self.group

    def everything(self) -> list[str]:
        """Keys that go when the source goes; not its main stream."""
        return [self.side, *self.waiting, *self.about_messages()]

    def about_messages(self) -> list[str]:
        """Keys with what is known about messages that are in a stream."""
        return [self.alone, self.locks, self.parked, self.ready, self.notes]
