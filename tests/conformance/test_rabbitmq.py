"""The conformance suite on a real RabbitMQ, one virtual host per case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.rabbit_server import RabbitHarness, RabbitServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def harness(rabbitmq: RabbitServer) -> Iterator[Harness]:
    harness = RabbitHarness(rabbitmq)
    yield harness
    harness.close()
