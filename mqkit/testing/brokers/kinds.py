"""The kinds of brokers that can be provided for tests: one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from mqkit.testing.brokers.broker import Broker
from mqkit.testing.brokers.places import key_prefix, vhost
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
    )
}
