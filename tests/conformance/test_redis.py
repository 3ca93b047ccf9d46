"""The conformance suite on redis://, one prefix per case on a server that syncs every write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from mqkit.destinations import Destination
from mqkit.native import RedisTopic
from mqkit.testing.brokers import RedisProcess
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("redis")]

_numbers = itertools.count(1)


class RedisHarness(Harness):
    """A foreign client is redis-py on the same server."""

    def __init__(self, server: RedisProcess) -> None:
        self._server = server
        self._prefix = f"{{case{next(_numbers)}}}:"
        super().__init__(f"{server.url}?{urlencode({'prefix': self._prefix})}")

    def retention(self, seconds: float) -> object:
        return RedisTopic(retain=seconds)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        with redis.Redis(port=self._server.port) as client:
            client.xadd(self._stream(destination), {"body": body, **headers})

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        with redis.Redis(port=self._server.port) as client:
            return [fields[b"body"] for _, fields in client.xrange(self._stream(destination))]

    def restart(self) -> None:
        self._server.restart()

    def _stream(self, destination: Destination[Any]) -> str:
        return f"{self._prefix}{destination.kind[0]}:{destination.name}"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisProcess]:
    with RedisProcess(appendonly=True) as server:
        yield server


@pytest.fixture
def harness(server: RedisProcess) -> Iterator[Harness]:
    harness = RedisHarness(server.start())
    yield harness
    harness.close()
