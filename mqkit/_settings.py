"""Settings: what one consumer does, with every default filled in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from mqkit.backends.base import Capabilities, Declaration
from mqkit.destinations import Destination
from mqkit.errors import CapabilityMissing
from mqkit.handlers import Batch, Promise, Where
from mqkit.patterns.retry import Retry


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What one consumer does, with every default filled in."""

    name: str
    destination: Destination[Any]
    group: str | None
    declaration: Declaration
    retry: Retry
    promise: Promise
    concurrency: int
    timeout: float | None
    window: int | None  # fixed (pull), or None: adapted to how fast handlers are
    batch: Batch | None
    where: Where | None
    manual: bool

    @property
    def ordered(self) -> bool:
        return self.declaration.order == "key"

    @property
    def live(self) -> bool:
        return self.destination.kind == "broadcast"

    @property
    def early(self) -> bool:
        """Is a delivery settled before its handler starts, so that nothing is left to settle when it ends?"""
        return self.live or self.promise == "at_most_once"


def needs(settings: Settings, can: Capabilities, known: Sequence[str]) -> None:
    """`CapabilityMissing` when the backend cannot do what this consumer asks for."""
    missing = []
    if settings.ordered and not can.order_by_key:
        missing.append('order="key"')
    if settings.promise == "exactly_once" and not can.atomic:
        missing.append('promise="exactly_once"')
    if settings.declaration.priorities > can.priorities:
        missing.append(f"priorities={settings.declaration.priorities}")
    if settings.live and not can.broadcast:
        missing.append("broadcast")
    if settings.retry.attempts != 1 and not settings.early and not settings.ordered:
        longest = max(can.release, can.delay)
        if not longest:
            missing.append("retry")
        elif settings.retry.backoff.cap > longest:
            missing.append(f"a back-off of {settings.retry.backoff.cap:g} s (at most {longest:g} s)")
    if settings.retry.attempts != 1 and settings.ordered and settings.retry.backoff.cap > can.hold:
        missing.append(f"a back-off of {settings.retry.backoff.cap:g} s in order (at most {can.hold:g} s)")
    if settings.declaration.start == "earliest" and not can.replay:
        missing.append('start="earliest"')
    if missing:
        raise CapabilityMissing(
            f"{settings.name}: {can.name} cannot do {', '.join(missing)}; run `mqkit capabilities` to see which of "
            f"{', '.join(known)} can"
        )
