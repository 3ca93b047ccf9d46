"""The conformance suite on memory://."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from mqkit.backends.base import Outgoing
from mqkit.destinations import Destination
from mqkit.envelope import Envelope
from mqkit.native import MemoryTopic
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness


class MemoryHarness(Harness):
    """Nothing but mqkit can reach into a process, so its foreign client is the broker's own door, without an envelope."""

    def retention(self, seconds: float) -> object:
        return MemoryTopic(retain=seconds)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        publisher = self._backend.publisher()
        publisher.submit([Outgoing(destination.address, "of a foreigner", body, None, headers, Envelope())])
        assert [error for _, error in publisher.collect(0.0)] == [None]
        publisher.close()

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        return [received.body for received in self._stored(destination)]

    def find_native(self, destination: Destination[Any], native: Any) -> bytes:
        [body] = [received.body for received in self._stored(destination) if received.native == native]
        return body

    def _stored(self, destination: Destination[Any]) -> Any:
        admin = self._backend.admin()
        return admin.browse(destination.address, limit=1000)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = MemoryHarness(f"memory://{uuid.uuid4().hex}")
    yield harness
    harness.close()
