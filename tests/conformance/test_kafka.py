"""The conformance suite on Apache Kafka 4.3, one prefix per case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.brokers import KafkaProcess
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.kafka_server import KafkaHarness, running_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaProcess]:
    yield from running_server("4.3.0")


@pytest.fixture
def harness(server: KafkaProcess) -> Iterator[Harness]:
    harness = KafkaHarness(server.start(), "4.3.0")
    yield harness
    harness.close()
