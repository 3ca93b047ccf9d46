"""Health: a snapshot of a bus for probes, taken without I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Health:
    """
    Args:
        live: False when only a restart of the process helps: a thread of the bus has died.
        ready: True when messages can be published and, if a worker runs, all its consumers take messages.
        reasons: Why not, and what else an operator should know (stuck handlers); empty when all is well.
    """

    live: bool
    ready: bool
    reasons: Sequence[str] = ()
