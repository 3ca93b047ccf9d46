"""What can be wrong with a broker for tests: there is none, or it does not start."""

from __future__ import annotations

from mqkit.errors import ConfigError, Unavailable


class BrokerAbsent(ConfigError):
    """Nothing here can provide this broker. The message says what was tried and what would enable it."""


class BrokerFailed(Unavailable):
    """The broker is installed and did not start, or ended, within its bound. The message ends with its log."""
