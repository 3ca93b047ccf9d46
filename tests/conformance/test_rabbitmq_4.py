"""The conformance suite on RabbitMQ 4, one virtual host per case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.newer_brokers import rabbitmq_4
from tests.rabbit_server import RabbitHarness, RabbitServer, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[RabbitServer]:
    yield from running_server(rabbitmq_4())


@pytest.fixture
def harness(server: RabbitServer) -> Iterator[Harness]:
    harness = RabbitHarness(server)
    yield harness
    harness.close()
