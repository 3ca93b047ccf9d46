"""A server for these tests, and a virtual host for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rabbit_server import RabbitHarness, RabbitServer, running_server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitServer]:
    yield from running_server()


@pytest.fixture
def harness(rabbitmq: RabbitServer) -> Iterator[RabbitHarness]:
    harness = RabbitHarness(rabbitmq)
    yield harness
    harness.close()
