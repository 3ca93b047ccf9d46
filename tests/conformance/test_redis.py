"""The conformance suite on redis://, one prefix per case on a server that syncs every write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from mqkit.destinations import Destination
from mqkit.native import RedisTopic
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("redis")]

_numbers = itertools.count(1)


class RedisHarness(Harness):
    """A foreign client is redis-py on the same server."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._prefix = f"{{case{next(_numbers)}}}:"
        super().__init__(f"{server.url}?prefix={self._prefix}")

    def retention(self, seconds: float) -> object:
        return RedisTopic(retain=seconds)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        with self._server.client() as client:
            client.xadd(self._stream(destination), {"body": body, **headers})

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        with self._server.client() as client:
            return [fields[b"body"] for _, fields in client.xrange(self._stream(destination))]

    def restart(self) -> None:
        self._server.restart()

    def _stream(self, destination: Destination[Any]) -> str:
        return f"{self._prefix}{destination.kind[0]}:{destination.name}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def harness(server: RedisServer) -> Iterator[Harness]:
    harness = RedisHarness(server)
    yield harness
    harness.close()
