"""A node for these tests, and a prefix for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.brokers import KafkaProcess
from tests.kafka_server import KafkaHarness, running_server


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaProcess]:
    yield from running_server("4.3.0")


@pytest.fixture
def harness(kafka: KafkaProcess) -> Iterator[KafkaHarness]:
    harness = KafkaHarness(kafka.start(), "4.3.0")
    yield harness
    harness.close()
