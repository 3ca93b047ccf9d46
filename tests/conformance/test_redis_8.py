"""The conformance suite on Redis 8, one prefix per case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.brokers import RedisProcess
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.newer_brokers import redis_8
from tests.redis_server import RedisHarness, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    yield from running_server(redis_8())


@pytest.fixture
def harness(server: RedisProcess) -> Iterator[Harness]:
    harness = RedisHarness(server.start())
    yield harness
    harness.close()
