"""What a handler may raise to decide about its delivery itself."""

from __future__ import annotations

import math

from mqkit._text import text_of


class Verdict(Exception):
    """Base of the three verdicts; raise one of them in a handler."""

    reason: str = ""

    def __init__(self, reason: object = "") -> None:
        self.reason = text_of(reason)
        super().__init__(self.reason)


class Ack(Verdict):
    """Settle the delivery as done, at once. What the handler staged with `delivery.publish` is sent."""


class RetryLater(Verdict):
    """
    Hand the message out again later. Counts as an attempt; the limits of the retry policy apply.

    Args:
        after: Seconds to wait, 0 or more, finite.
        reason: Shown in traces, logs and, when the attempts run out, in the dead letter.
    """

    after: float = 0.0

    def __init__(self, *, after: float, reason: object = "") -> None:
        super().__init__(reason)
        if not (isinstance(after, (int, float)) and math.isfinite(after) and after >= 0):
            raise ValueError(f"RetryLater(after={after!r}): seconds to wait must be 0 or more, and not endless")
        self.after = float(after)


class Reject(Verdict):
    """Move the message to the dead letters now, whatever attempts are left. A `reason` may be an exception."""

    def __init__(self, reason: object) -> None:
        super().__init__(reason)
