"""
Native names of queues and topics, and back; pure.

A name of SQS has letters, digits, `-` and `_`. Each byte of anything else is written as `--x` and two hexadecimal digits,
and so is a `-` that does not stand between two plain characters. So `--` begins a group, `---` one of our own parts, and no
two names meet. What is too long is cut and ends with a digest of the whole, which is kept in tags of the queue.
Source: AWS SQS API, CreateQueue, QueueName; SNS API, CreateTopic, Name
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Literal

from mqkit.backends.base import Address

QUEUE, TOPIC = 80, 256  # longest names
FIFO = ".fifo"
TAG = "mqkit:name"  # with a number: pieces of the whole name of a queue whose own is cut
_PIECE = 200  # characters of one tag's value
_DIGEST = 12

Role = Literal["", "dead", "delay", "tdelay", "live"]

_PLAIN = "[A-Za-z0-9_]"
_SPECIAL = re.compile(rf"(?!{_PLAIN}|(?<={_PLAIN})-(?={_PLAIN})).", re.DOTALL)
_TEXT = rf"(?:{_PLAIN}|(?<={_PLAIN})-(?={_PLAIN})|--x[0-9a-f]{{2}})+"
_WHOLE = re.compile(rf"(?P<name>{_TEXT})(?:--(?P<group>{_TEXT}))?(?:---(?P<role>dead|delay|tdelay|live))?")
_CUT = re.compile(rf"--h[0-9a-f]{{{_DIGEST}}}(?:---[a-z]+)?$")
_GROUP_ID = re.compile(r"(?!mq:)[!-~]{1,128}")


class Names:
    """
    Args:
        prefix: Begins every queue and topic, so that several applications share an account.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def queue(self, address: Address, *, fifo: bool) -> str:
        """Of a queue, a group or dead letters. Dead letters are never FIFO: there, one that dies again would be dropped."""
        if address.dead:
            return self._native(address, "dead", QUEUE, "")
        return self._native(address, "", QUEUE, FIFO if fifo else "")

    def delay(self, address: Address) -> str:
        """Where messages of a topic or of a FIFO queue wait until they are due, which neither can do itself."""
        return self._native(address, "tdelay" if address.kind == "topic" and not address.group else "delay", QUEUE, "")

    def topic(self, address: Address, *, fifo: bool) -> str:
        """Of a topic or a broadcast."""
        role: Role = "live" if address.kind == "broadcast" else ""
        return self._native(address._replace(group=""), role, TOPIC, FIFO if fifo else "")

    @property
    def listeners(self) -> str:
        """How the names of all listeners' queues begin."""
        return f"{self.prefix}---live-"

    def listener(self, unique: str) -> str:
        return self.listeners + unique

    def address(self, native: str) -> tuple[Address, Role] | None:
        """Whose queue it is, and what for; None where it is none of ours."""
        if not native.startswith(self.prefix):
            return None
        return whole(native.removeprefix(self.prefix).removesuffix(FIFO))

    def _native(self, address: Address, role: Role, longest: int, end: str) -> str:
        text, end = _joined(address), (f"---{role}" if role else "") + end
        room = longest - len(self.prefix) - len(end)
        if len(text) > room:
            digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]
            text = f"{text[: room - _DIGEST - 3].rstrip('-')}--h{digest}"
        return f"{self.prefix}{text}{end}"


def tags_of(address: Address, native: str) -> dict[str, str]:
    """The tags a queue is made with: its whole name, where its own is cut."""
    if not is_cut(native):
        return {}
    text = _joined(address)
    return {f"{TAG}:{at // _PIECE}": text[at : at + _PIECE] for at in range(0, len(text), _PIECE)}


def is_cut(native: str) -> bool:
    return _CUT.search(native.removesuffix(FIFO)) is not None


def restored(native: str, tags: Mapping[str, str], prefix: str) -> str:
    """The name as it would be if names could be long."""
    pieces: list[str] = []
    while (piece := tags.get(f"{TAG}:{len(pieces)}")) is not None:
        pieces.append(piece)
    if not pieces:
        return native
    bare = native.removesuffix(FIFO)
    found = _CUT.search(bare)
    role = "" if found is None else found[0][3 + _DIGEST :]
    return prefix + "".join(pieces) + role + (FIFO if native.endswith(FIFO) else "")


def whole(text: str) -> tuple[Address, Role] | None:
    found = _WHOLE.fullmatch(text)
    if found is None:
        return None
    name, group, role = _original(found["name"]), _original(found["group"] or ""), found["role"] or ""
    kind: Literal["queue", "topic"] = "topic" if group or role == "tdelay" else "queue"
    return Address(kind, name, group, role == "dead"), role  # type: ignore[return-value]  # one of the roles


def fifo_id(text: str) -> str:
    """As the id of an ordering group or for deduplication, where SQS takes 128 characters of ASCII."""
    if _GROUP_ID.fullmatch(text):
        return text
    return f"mq:{hashlib.sha256(text.encode()).hexdigest()}"


def _joined(address: Address) -> str:
    name, group = _encoded(address.name), _encoded(address.group)
    if not group:
        return name
    if re.match(r"x[0-9a-f]{2}", group):  # behind `--` it would read as an escape
        group = f"--x78{group[1:]}"
    return f"{name}--{group}"


def _encoded(text: str) -> str:
    return _SPECIAL.sub(lambda found: "".join(f"--x{byte:02x}" for byte in found[0].encode()), text)


def _original(text: str) -> str:
    octets = re.sub(rb"--x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), text.encode())
    return octets.decode(errors="replace")
