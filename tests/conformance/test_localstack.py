"""The conformance suite on LocalStack's SQS and SNS, one prefix per case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mqkit.testing.brokers import AwsProcess
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.sqs_server import SqsHarness, running_server

# An emulator takes its time for the cases of many messages and many clients.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server() -> Iterator[AwsProcess]:
    yield from running_server("localstack")


@pytest.fixture
def harness(server: AwsProcess) -> Iterator[Harness]:
    harness = SqsHarness(server.start(), "localstack")
    yield harness
    harness.close()
