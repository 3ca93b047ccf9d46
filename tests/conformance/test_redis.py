"""The conformance suite on redis://, one prefix per case on a server that syncs every write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import pytest
import redis

from mqkit.destinations import Destination
from mqkit.native import RedisTopic
from mqkit.testing.brokers import Certificates, RedisProcess
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
        with self._client() as client:
            client.xadd(self._stream(destination), {"body": body, **headers})

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        with self._client() as client:
            return [fields[b"body"] for _, fields in client.xrange(self._stream(destination))]

    @contextmanager
    def outage(self) -> Iterator[None]:
        self._server.kill()
        yield
        self._server.start()

    def restart(self) -> None:
        self._server.restart()

    def denied_url(self) -> str:
        return self.url.replace("redis://", "redis://nobody:wrong@")

    def untrusted_url(self) -> str:
        return self._server.tls_url

    def driver(self) -> tuple[str, str]:
        return "redis", "redis"

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self._server.port)

    def _stream(self, destination: Destination[Any]) -> str:
        return f"{self._prefix}{destination.kind[0]}:{destination.name}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    certificates = Certificates.make(tmp_path_factory.mktemp("certificates"))
    with RedisProcess(appendonly=True, tls=certificates) as server:
        yield server


@pytest.fixture
def harness(server: RedisProcess) -> Iterator[Harness]:
    harness = RedisHarness(server.start())
    yield harness
    harness.close()
