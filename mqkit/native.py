"""
Options of single backends, for what is not the same everywhere.

Plain values that import no driver. Several may stand together in `native=`; the backend of the bus takes its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class MemoryTopic:
    """
    Options of a topic on the memory backend.

    Args:
        retain: Seconds a message stays readable for groups that start with `start="earliest"`; 0 keeps nothing.
    """

    retain: float = 0.0
    backend = "memory"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SqliteTopic:
    """
    Options of a topic on the SQLite backend.

    Args:
        retain: Seconds a message stays in the file for groups that start with `start="earliest"`; 0 keeps nothing
            longer than its groups need it.
    """

    retain: float = 0.0
    backend = "sqlite"


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RabbitQueue:
    """
    Options of a queue on RabbitMQ.

    Args:
        type: `quorum` is replicated and counts hand-outs, which the limit on crashes needs; `classic` does neither. Empty:
            quorum, or classic where priorities are declared.
        arguments: Further arguments as RabbitMQ names them, such as `{"x-quorum-initial-group-size": 5}`; they also
            replace ours, to use a queue that exists already. Fixed at the first declaration.
    """

    type: Literal["", "quorum", "classic"] = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    backend = "rabbitmq"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RabbitTopic:
    """
    Options of a topic on RabbitMQ: another exchange than the usual one, and groups that get only a part of it.

    Args:
        exchange: Native name of the exchange; empty: the name of the topic.
        type: Of the exchange.
        subject: Name of the header whose value is the routing key of a message, such as `orders.eu.created`.
        bindings: What a group is bound with: one pattern or several (`orders.*.created`, `orders.#`), or for a headers
            exchange the headers to match, with `x-match`. A group that is not named gets everything, of a direct exchange
            what has no subject.
        queues: Options of the groups' queues.
    """

    exchange: str = ""
    type: Literal["topic", "direct", "fanout", "headers"] = "topic"
    subject: str = ""
    bindings: Mapping[str, str | Sequence[str] | Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    queues: RabbitQueue = RabbitQueue()
    backend = "rabbitmq"
