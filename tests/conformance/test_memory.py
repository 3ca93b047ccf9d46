"""The conformance suite on memory://."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness(f"memory://{uuid.uuid4().hex}")
    yield harness
    harness.close()
