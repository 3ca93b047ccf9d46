"""An emulator for these tests, and a prefix for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.brokers import AwsProcess
from tests.sqs_server import SqsHarness, running_server


@pytest.fixture(scope="session")
def sqs() -> Iterator[AwsProcess]:
    yield from running_server("ministack")


@pytest.fixture
def harness(sqs: AwsProcess) -> Iterator[SqsHarness]:
    harness = SqsHarness(sqs.start(), "ministack")
    yield harness
    harness.close()
