"""What a handler may raise to decide about its delivery itself."""

from __future__ import annotations


class Verdict(Exception):
    """Base of the three verdicts; raise one of them in a handler."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Ack(Verdict):
    """Settle the delivery as done, at once. What the handler staged with `delivery.publish` is sent."""


class RetryLater(Verdict):
    """
    Hand the message out again later. Counts as an attempt; the limits of the retry policy apply.

    Args:
        after: Seconds to wait, 0 or more.
        reason: Shown in traces, logs and, when the attempts run out, in the dead letter.
    """

    def __init__(self, *, after: float, reason: str = "") -> None:
        super().__init__(reason)
        if not after >= 0:
            raise ValueError(f"RetryLater(after={after!r}): seconds to wait must be 0 or more")
        self.after = float(after)


class Reject(Verdict):
    """Move the message to the dead letters now, whatever attempts are left."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
