"""
Options of single backends, for what is not the same everywhere.

Plain values that import no driver. Several may stand together in `native=`; the backend of the bus takes its own.
The `kind` of an options object is that of the destinations it is for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
    backend, kind = "rabbitmq", "queue"


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
    backend, kind = "rabbitmq", "topic"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KafkaQueue:
    """
    Options of a queue on Kafka.

    Args:
        config: Of the topic as Kafka names it, such as `{"min.insync.replicas": "2"}`, beside ours or instead of them. For
            topics that are made here; what exists stays as it is.
    """

    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    backend, kind = "kafka", "queue"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KafkaTopic:
    """
    Options of a topic on Kafka.

    Args:
        retain: Seconds a message stays, read or not; 0: as the cluster says, which is a week unless it was changed.
        starts: Where groups begin that are new, by name, instead of `start=`: at the first message that is not older than
            these epoch seconds, or at these offsets by partition.
        config: As of a `KafkaQueue`.
    """

    retain: float = 0.0
    starts: Mapping[str, float | Mapping[int, int]] = dataclasses.field(default_factory=dict)
    config: Mapping[str, str] = dataclasses.field(default_factory=dict)
    backend, kind = "kafka", "topic"

    def __post_init__(self) -> None:
        _check_seconds(self, "retain")


@dataclasses.dataclass(frozen=True, slots=True)
class KafkaPartition:
    """
    Publish to one partition of a queue or topic: `bus.publish(to, payload, native=KafkaPartition(2))`, key or not.

    Args:
        number: From 0.
    """

    number: int
    backend, kind = "kafka", "message"

    def __post_init__(self) -> None:
        if isinstance(self.number, bool) or not isinstance(self.number, int):
            raise ConfigError(f"KafkaPartition({self.number!r}): the number of a partition, from 0")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SqsQueue:
    """
    Options of a queue on SQS.

    Args:
        pause: Seconds a consumer waits after a receive that was not full, so that the next one brings more: under a trickle
            of messages each call then carries several, and each message waits half as long on the average.
        attributes: Attributes as SQS names them, such as `{"KmsMasterKeyId": "alias/orders"}`. What is there already must
            have the same.
    """

    pause: float = 0.0
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    backend, kind = "sqs", "queue"

    def __post_init__(self) -> None:
        _check_seconds(self, "pause")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SnsTopic:
    """
    Options of a topic on SNS, whose groups are queues on SQS.

    Args:
        filters: Filter policies by group, as SNS takes them: `{"eu": {"region": ["eu-west-1", {"prefix": "eu-"}]}}`. A
            group that is not named gets everything. Headers are what they match: nine of a message at most, those that
            filters name first.
        scope: Or the fields of a JSON body.
        attributes: Attributes of the topic as SNS names them, such as `{"KmsMasterKeyId": "alias/orders"}`.
        queues: Options of the groups' queues.
    """

    filters: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    scope: Literal["MessageAttributes", "MessageBody"] = "MessageAttributes"
    attributes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    queues: SqsQueue = dataclasses.field(default_factory=SqsQueue)
    backend, kind = "sqs", "topic"


def _check_seconds(options: Any, name: str) -> None:
    value = getattr(options, name)
    if not finite(value) or value < 0:
        raise ConfigError(f"{type(options).__name__}({name}={value!r}): seconds, 0 or more")
