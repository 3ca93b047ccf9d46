"""The conformance suite on a real RabbitMQ, one virtual host per case."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.rabbitmq import RabbitHarness, management_request

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rabbitmq")]


@pytest.fixture
def harness(rabbitmq) -> Iterator[Harness]:
    harness = RabbitHarness(rabbitmq)
    yield harness
    harness.close()
