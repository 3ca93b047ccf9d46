"""
Options of single backends, for what is not the same everywhere.

Plain values that import no driver. Several may stand together in `native=`; the backend of the bus takes its own.
The `kind` of an options object is that of the destinations it is for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from mqkit._numbers import finite
from mqkit.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTopic:
    """
    Options of a topic on the memory backend.

    Args:
        retain: Seconds a message stays readable for groups that start with `start="earliest"`; 0 keeps nothing.
    """

    retain: float = 0.0
    backend, kind = "memory", "topic"

    def __post_init__(self) -> None:
        _check_seconds(self, "retain")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SqliteTopic:
    """
    Options of a topic on the SQLite backend.

    Args:
        retain: Seconds a message stays in the file for groups that start with `start="earliest"`; 0 keeps nothing
            longer than its groups need it.
    """

    retain: float = 0.0
    backend, kind = "sqlite", "topic"

    def __post_init__(self) -> None:
        _check_seconds(self, "retain")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RedisQueue:
    """
    Options of a queue on the Redis backend.

    Args:
        dedupe: Seconds for which the ids of published messages are remembered, so that publishing one again within them
            stores nothing; 0 remembers none. About 180 bytes of the server's memory for each.
    """

    dedupe: float = 0.0
    backend, kind = "redis", "queue"

    def __post_init__(self) -> None:
        _check_seconds(self, "dedupe")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RedisTopic:
    """
    Options of a topic on the Redis backend.

    Args:
        retain: Seconds a message stays on the server for groups that start with `start="earliest"`; 0 keeps nothing
            longer than its groups need it.
        dedupe: As of a `RedisQueue`.
    """

    retain: float = 0.0
    dedupe: float = 0.0
    backend, kind = "redis", "topic"

    def __post_init__(self) -> None:
        _check_seconds(self, "retain")
        _check_seconds(self, "dedupe")


@dataclasses.dataclass(frozen=True, slots=True)
class SqliteTransaction:
    """
    Publish inside a transaction of your own: `bus.publish(to, payload, native=SqliteTransaction(connection))`.

    The message is visible to consumers when you commit and gone when you roll back.

    Args:
        connection: An open `sqlite3.Connection` to the same file as the bus, in a transaction begun with
            BEGIN IMMEDIATE, used on the calling thread.
    """

    connection: Any
    backend = "sqlite"


def _check_seconds(options: Any, name: str) -> None:
    value = getattr(options, name)
    if not finite(value) or value < 0:
        raise ConfigError(f"{type(options).__name__}({name}={value!r}): seconds, 0 or more")
