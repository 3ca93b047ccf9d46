"""What the URL of a SQLite file may say, and where the file is."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from mqkit._url import Url
from mqkit.errors import ConfigError

_LONGEST_BUSY = 86_400.0  # SQLite takes it as milliseconds in 32 bits


@dataclass(frozen=True, kw_only=True)
class SqliteOptions:
    """
    Options of a `sqlite://` URL.

    Args:
        synchronous: `full` survives power loss; `normal` survives the death of processes only.
        lease: Seconds after which what a silent receiver holds goes to another one; over 0.2.
        max_body: Bytes of the largest message.
        reserve: Bytes of free disk space that publishes leave, so that consuming can still write; 0 leaves nothing.
        network: What to do on a network file system, whose locks SQLite cannot trust: `refuse` or `warn`.
        busy: Seconds to wait for a foreign program that holds the file's write lock.
    """

    synchronous: Literal["full", "normal"] = "full"
    lease: float = 30.0
    max_body: int = 16 << 20
    reserve: int = 64 << 20
    network: Literal["refuse", "warn"] = "refuse"
    busy: float = 5.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lease) and math.isfinite(self.busy) and self.busy < _LONGEST_BUSY):
            raise ValueError(f"lease={self.lease} and busy={self.busy} must be numbers of seconds, busy below a day")
        if not self.lease > 0.2:
            raise ValueError(f"lease={self.lease} is too short to be renewed in time; use more than 0.2 seconds")
        if self.max_body <= 4096:
            raise ValueError(f"max_body={self.max_body} must be over 4096, of which that much is kept for dead letters")
        if self.reserve < 0 or self.busy < 0:
            raise ValueError("reserve and busy must not be negative")


def file_path(url: Url) -> str:
    """The absolute path with links resolved, so that two names of one file meet. Raises `ConfigError`."""
    if url.host or url.username or url.port is not None:
        raise ConfigError(
            "a sqlite URL names a file: sqlite:///relative.db or sqlite:////absolute.db (count the slashes)"
        )
    name = url.path.removeprefix("/")
    if name in ("", ":memory:"):
        raise ConfigError("a sqlite URL needs a file, such as sqlite:///app.db; for a broker in memory use memory://")
    if "\0" in name:
        raise ConfigError(f"the path {name!r} of a sqlite URL holds a NUL (%00), which no file name can")
    return os.path.realpath(name)
