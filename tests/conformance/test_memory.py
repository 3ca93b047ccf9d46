"""The conformance suite on memory://."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from mqkit.native import MemoryTopic
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness


class MemoryHarness(Harness):
    def retention(self, seconds: float) -> object:
        return MemoryTopic(retain=seconds)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = MemoryHarness(f"memory://{uuid.uuid4().hex}")
    yield harness
    harness.close()
