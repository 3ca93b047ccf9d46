"""Exit codes, and which error leads to which."""

from __future__ import annotations

from mqkit.errors import ConfigError, MqkitError, NotFound, PublishUnknown, Unencodable

OK = 0
FAILED = 1  # the broker refused, did not answer, or a part of the work failed
USAGE = 2  # command line, configuration or input; the same call can never succeed
NOT_FOUND = 3  # destination, group or message
NOTHING = 4  # nothing to do, or the confirmation was refused
UNKNOWN = 5  # sent or not, nobody knows: repeat with the same --id
INTERRUPTED = 130
BROKEN_PIPE = 141

_CODES: tuple[tuple[type[MqkitError], int], ...] = (
    (NotFound, NOT_FOUND),
    (PublishUnknown, UNKNOWN),
    (ConfigError, USAGE),
    (Unencodable, USAGE),
)


def code_of(error: MqkitError) -> int:
    return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)


def line_of(error: BaseException) -> str:
    """One readable sentence; only `ConfigError` may have further lines, which show what to write."""
    text = str(error) or error.__class__.__name__
    return text if isinstance(error, ConfigError) else " ".join(text.split())
