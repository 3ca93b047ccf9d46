"""How long a verb may take: a number of seconds, checked before anything else happens."""

from __future__ import annotations

import threading

from mqkit.errors import ConfigError

LONGEST = threading.TIMEOUT_MAX / 2  # half of what a lock can wait: 146 years on Linux, 24 days on Windows


def check_timeout(verb: str, timeout: object) -> None:
    """Raises `ConfigError` for anything that cannot be waited for; there is no "for ever"."""
    if timeout.__class__ is float and 0.0 <= timeout <= LONGEST:
        return
    number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
    if not number or not 0 <= timeout <= LONGEST:  # type: ignore[operator]
        raise ConfigError(f"{verb}(timeout={timeout!r}) must be a number of seconds, from 0 to {LONGEST:,.0f}")
