"""Message ids: 32 hexadecimal digits that grow with time, so that an index of them grows at its end."""

from __future__ import annotations

import hashlib
import itertools
import os


class _Ids:
    """12 digits of milliseconds, 8 of a counter, 12 drawn once per process."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        # A forked child must draw its own: with an inherited one it would repeat its parent's ids.
        self._process = os.urandom(6).hex()
        self._count = itertools.count(int.from_bytes(os.urandom(2)))

    def next(self, now: float) -> str:
        """`now`: epoch seconds, which the caller has read anyway."""
        # Ten bytes in one go: formatting two numbers costs twice as much.
        return (int(now * 1000) << 32 | next(self._count) & 0xFFFFFFFF).to_bytes(10).hex() + self._process


_ids = _Ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.renew)

new_id = _ids.next


def derived_id(parent: str, group: str, position: int) -> str:
    """The id of the message a handler stages at this position: the same on every attempt, and for no other group."""
    return hashlib.blake2b(f"{parent}\0{group}\0{position}".encode(), digest_size=16).hexdigest()
