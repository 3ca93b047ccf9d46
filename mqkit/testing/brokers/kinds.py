"""The kinds of brokers that can be provided for tests: one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from mqkit.testing.brokers.aws import AwsProcess, sqs_answers
from mqkit.testing.brokers.broker import Broker
from mqkit.testing.brokers.kafka import ONE_NODE, KafkaProcess, kafka_answers
from mqkit.testing.brokers.places import key_prefix, queues_and_topics, topics_and_groups, vhost
from mqkit.testing.brokers.process import BrokerProcess
from mqkit.testing.brokers.rabbitmq import MANAGEMENT, RabbitProcess, management_answers, rabbitmq_answers
from mqkit.testing.brokers.redis import RedisProcess, redis_answers


class _Answers(Protocol):
    def __call__(self, host: str, port: int) -> bool: ...


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """
    How one kind of broker is found, started and shared.

    A new kind is one more line in `KINDS`, and its name in `BROKERS` of the pytest plugin.
    """

    name: str
    port: int  # where it listens if nobody says otherwise
    tls_scheme: str  # of URLs over TLS
    tls_port: int
    answers: _Answers  # whether clients are served at this host and port
    place: Callable[[Broker, str], AbstractContextManager[str]]  # a URL that nothing else uses, by a unique name
    process: Callable[[], BrokerProcess]
    image: str  # the official one
    url: str  # of a container, with {host} and {port}
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # that a container needs
    # Variables of a container. Where one has {host} and {port} in it, its port is chosen before it starts.
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    management_port: int | None = None
    management_answers: _Answers | None = None
    start_timeout: float  # seconds for a container

    @property
    def url_variable(self) -> str:
        return f"MQKIT_TEST_{self.name.upper()}_URL"

    @property
    def management_variable(self) -> str:
        return f"MQKIT_TEST_{self.name.upper()}_MANAGEMENT_URL"

    @property
    def image_variable(self) -> str:
        return f"MQKIT_TEST_{self.name.upper()}_IMAGE"


# The official image holds every plugin, enables few, and switches the statistics of the management API off.
# Source: https://github.com/docker-library/rabbitmq, Dockerfile-debian.template and Dockerfile-management.template
_RABBITMQ_FILES = {
    "/etc/rabbitmq/enabled_plugins": f"[{MANAGEMENT}].\n".encode(),
    "/etc/rabbitmq/conf.d/90-mqkit.conf": (
        b"loopback_users.guest = false\n"
        b"management_agent.disable_metrics_collector = false\n"
        b"disk_free_limit.absolute = 64MB\n"
        b"collect_statistics_interval = 1000\n"
    ),
}

# A client goes on to the address that the broker tells it, so that has to be the one outside of the container. What the
# broker sends to itself, such as the markers at the end of a transaction, needs one inside. With one variable given, the
# official image forgets its own defaults.
# Source: https://github.com/apache/kafka, core/src/main/scala/kafka/docker/KafkaDockerWrapper.scala
_KAFKA_SETTINGS = {
    **ONE_NODE,
    "controller.quorum.voters": "1@localhost:9093",
    "inter.broker.listener.name": "INSIDE",
    "listeners": "OUTSIDE://:9092,CONTROLLER://:9093,INSIDE://:9094",
    "advertised.listeners": "OUTSIDE://{host}:{port},INSIDE://localhost:9094",
    "listener.security.protocol.map": "OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT,INSIDE:PLAINTEXT",
}

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="rabbitmq",
            port=5672,
            tls_scheme="amqps",
            tls_port=5671,
            answers=rabbitmq_answers,
            place=vhost,
            process=RabbitProcess,
            image="rabbitmq:4",
            url="amqp://guest:guest@{host}:{port}/",
            files=_RABBITMQ_FILES,
            management_port=15672,
            management_answers=management_answers,
            start_timeout=120.0,
        ),
        Kind(
            name="redis",
            port=6379,
            tls_scheme="rediss",
            tls_port=6379,
            answers=redis_answers,
            place=key_prefix,
            process=RedisProcess,
            image="redis:8",
            url="redis://{host}:{port}/0",
            start_timeout=30.0,
        ),
        Kind(
            name="kafka",
            port=9092,
            tls_scheme="kafka+ssl",
            tls_port=9093,
            answers=kafka_answers,
            place=topics_and_groups,
            process=KafkaProcess,
            image="apache/kafka:4.3.0",
            url="kafka://{host}:{port}",
            environment={f"KAFKA_{name.upper().replace('.', '_')}": value for name, value in _KAFKA_SETTINGS.items()},
            start_timeout=60.0,
        ),
        Kind(
            name="sqs",
            port=4566,
            tls_scheme="sqs",
            tls_port=443,
            answers=sqs_answers,
            place=queues_and_topics,
            process=AwsProcess,
            image="localstack/localstack:4.14.0",  # the last that asks for no account
            url="sqs://test:test@{host}:{port}/?region=us-east-1&tls=false",
            environment={"SERVICES": "sqs,sns", "EAGER_SERVICE_LOADING": "1", "DISABLE_EVENTS": "1"},
            start_timeout=120.0,
        ),
    )
}
