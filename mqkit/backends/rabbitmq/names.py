"""
Names of queues, exchanges and routes, and back; pure.

`/` is illegal in names of mqkit, so `/` divides topic from group and `//` begins our own parts: nothing collides.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib

from mqkit.backends.base import Address

LONGEST = 190  # bytes of a queue's name; a delayed message needs the rest of 255 for its way through the ladder
ADDRESS = "x-mqkit-address"  # queue argument that keeps what a shortened name cannot say
_RESERVED = ("amq.", "mqkit.")  # of the server, and ours

DEAD = "//dead"
NOTES = "//notes"
TURN = "//turn"
LIVE = "//live"


def queue_of(address: Address) -> str:
    """The queue of a queue, group or their dead letters; with partitions, what the names of its queues begin with."""
    name = _own(address.name) + (f"/{address.group}" if address.group else "")
    return _short(name) + (DEAD if address.dead else "")


def queues_of(address: Address, partitions: int) -> list[str]:
    """All queues of a source. Dead letters have one."""
    name = queue_of(address)
    if partitions == 1 or address.dead:
        return [name]
    return [partition_queue(name, partition) for partition in range(partitions)]


def partition_queue(name: str, partition: int) -> str:
    return f"{name}//{partition}"


def notes_of(address: Address) -> str:
    return queue_of(address) + NOTES


def turn_of(address: Address) -> str:
    """Whoever has this queue for himself may take notes."""
    return notes_of(address) + TURN


def exchange_of(address: Address) -> str:
    """Of a topic or broadcast."""
    return _short(_own(address.name)) + (LIVE if address.kind == "broadcast" else "")


def full_name(address: Address) -> str | None:
    """What has to be kept beside a shortened name; None where the name says everything."""
    name = _own(address.name) + (f"/{address.group}" if address.group else "")
    return name if _short(name) != name else None


def partition_of(key: str | None, id: str, partitions: int) -> int:
    """The same in every language: CRC-32 of the key, or of the id where there is none."""
    return 0 if partitions == 1 else zlib.crc32((key if key is not None else id).encode()) % partitions


def address_of_queue(name: str, full: str | None = None) -> Address | None:
    """The address a queue belongs to, of any of its partitions; None for what is not ours to show."""
    if name.startswith(("mqkit.", "amq.")):
        return None
    escaped = name.startswith("//")
    stem = name[2:] if escaped else name
    stem, _, part = stem.partition("//")
    if part and part != "dead" and not part.isdigit():
        return None
    if full is not None:
        stem = full.removeprefix("//")
    first, slash, group = stem.partition("/")
    return Address("topic" if slash else "queue", first, group, part == "dead")


def address_of_exchange(name: str) -> Address | None:
    """The topic or broadcast of an exchange of ours."""
    if not name or name.startswith(("mqkit.", "amq.")):
        return None
    stem = name.removeprefix("//")
    live = stem.endswith(LIVE)
    return Address("broadcast" if live else "topic", stem.removesuffix(LIVE))


# -- the ladder: 28 queues that wait 0.1 s x 2^n, entered at the highest bit of the delay -----------------------------

RUNGS = 28
UNIT = 0.1  # seconds the lowest rung waits
LONGEST_DELAY = UNIT * (2**RUNGS - 1)
DELIVER = "mqkit.deliver"
UNDELIVERABLE = "mqkit.undeliverable"


def rung(level: int) -> str:
    return f"mqkit.delay.{level}"


def units_of(delay: float) -> int:
    """A delay in steps of the ladder, never shorter than asked for."""
    units = math.ceil(delay / UNIT - 1e-6)  # 2.2 / 0.1 is a little over 22
    return max(1, min((1 << RUNGS) - 1, units))


def way_to_queue(queue: str) -> str:
    """The words that end the routing key of what waits for a queue."""
    return f"q.{_literal(queue)}"


def way_to_topic(exchange: str, partition: int | str) -> str:
    """... or for a topic; `*` as the partition stands for all of them."""
    # One word, whatever its dots: what comes after it may be any number of words, and `orders` is not `orders.eu`.
    return f"t.{_literal(exchange).replace('.', _DOT)}.{partition}"


def delayed_key(units: int, way: str) -> str:
    bits = ".".join(format(units, f"0{RUNGS}b"))
    return f"{bits}.{way}"


def waiting_for(routing_key: str) -> str:
    """The way at the end of a delayed message's routing key."""
    return routing_key[2 * RUNGS :]


def entrance(units: int) -> str:
    return rung(max(units.bit_length() - 1, 0))


_DOT = "\x1f"  # as long as a dot, and in no name
ANY_DELAY = "*." * RUNGS  # exactly so many words: `#` would also match the ends of longer names


def _own(name: str) -> str:
    return f"//{name}" if name.startswith(_RESERVED) else name


def _short(name: str) -> str:
    data = name.encode()
    if len(data) <= LONGEST:
        return name
    digest = hashlib.sha256(data).hexdigest()[:32]
    return f"{data[:120].decode(errors='ignore')}~{digest}"


def _literal(name: str) -> str:
    """Without the characters that a binding would take for wildcards."""
    return re.sub(r"[*#%]", lambda match: f"%{ord(match[0]):02X}", name)
