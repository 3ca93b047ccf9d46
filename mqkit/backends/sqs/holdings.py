"""Holdings: what a receiver holds, and until when; pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mqkit.backends.base import Received

LATEST = 2.0  # most seconds before the end of a lease after which nothing is done with it any more
AGAIN = 0.5  # share of a lease that is left when it is renewed


class Held(msgspec.Struct, gc=False, eq=False):
    """
    One message that SQS hides from others for us.

    `handle` is that of its hand-out, None while it waits here. `tried`: it was settled, and the answer never came. `arrival`
    is how it came.
    """

    receipt: str
    group: str  # its ordering group, or empty
    received: Received
    until: float  # by time.monotonic(): the end of its lease
    handle: Any = None
    tried: bool = False
    arrival: Any = None


class Holdings:
    """
    Args:
        lease: Seconds.
    """

    def __init__(self, lease: float) -> None:
        self.lease = lease
        self._margin = min(LATEST, lease / 10)
        self._all: dict[int, Held] = {}  # by identity

    def __len__(self) -> int:
        return len(self._all)

    def all(self) -> list[Held]:
        return list(self._all.values())

    def add(self, held: Held) -> None:
        self._all[id(held)] = held

    def remove(self, held: Held) -> None:
        self._all.pop(id(held), None)

    def has(self, held: Held) -> bool:
        return id(held) in self._all

    def expired(self, now: float, *, ordered: bool) -> list[Held]:
        """
        Those whose lease is over, or so nearly that what is sent now may come too late; removed.

        With `ordered`, all of their groups: what stood behind may not go on without them.
        """
        over = [held for held in self._all.values() if held.until - self._margin <= now]
        if ordered and over:
            groups = {held.group for held in over}
            over = [held for held in self._all.values() if held.group in groups]
        for held in over:
            del self._all[id(held)]
        return over

    def renewable(self, now: float) -> list[Held]:
        """Those to be renewed, if it is time for any: with a little more than is due, for calls that are full."""
        share = self.lease * AGAIN
        if not any(held.until - now <= share for held in self._all.values()):
            return []
        return [held for held in self._all.values() if held.until - now <= share * 1.25]

    def renewed(self, held: Held, until: float) -> None:
        held.until = until
        held.received.lease_until = until


def by_group(held: Sequence[Held], most: int) -> list[list[Held]]:
    """
    In batches, none of which divides an ordering group: parts of one that are given back apart may be handed out out of
    order. Without groups each is one of its own.
    """
    groups: dict[Any, list[Held]] = {}
    for each in held:
        groups.setdefault(each.group or id(each), []).append(each)
    batches: list[list[Held]] = []
    for group in groups.values():
        if not batches or len(batches[-1]) + len(group) > most:
            batches.append([])
        batches[-1] += group
    return batches
