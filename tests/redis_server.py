"""What the suite on Redis has in its hands: a server that syncs every write, and the harness."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import redis

from mqkit.destinations import Destination
from mqkit.native import RedisTopic
from mqkit.testing.brokers import Certificates, RedisProcess
from mqkit.testing.conformance import Harness

_numbers = itertools.count(1)


def running_server(program: Path | None = None) -> Iterator[RedisProcess]:
    """Of another version than the installed one, if a program is named."""
    with tempfile.TemporaryDirectory() as folder:
        certificates = Certificates.make(Path(folder))
        with RedisProcess(appendonly=True, tls=certificates, program=program) as server:
            yield server


class RedisHarness(Harness):
    """A foreign client is redis-py on the same server."""

    def __init__(self, server: RedisProcess) -> None:
        self._server = server
        self._prefix = f"{{case{next(_numbers)}}}:"
        super().__init__(f"{server.url}?{urlencode({'prefix': self._prefix})}", scale=2.0)
        with self._client() as client:
            self._version: str = client.info("server")["redis_version"]

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
        try:
            yield
        finally:
            self._server.start()

    @property
    def system(self) -> str:
        return f"redis {self._version}"

    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.port

    def kill_connections(self) -> int:
        """All of the server's: a case has it for itself."""
        with self._client() as client:
            return int(client.client_kill_filter(_type="normal", skipme=True))

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
