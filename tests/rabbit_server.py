"""What tests of RabbitMQ have in their hands: a server of their own, its management API, and the suite's harness."""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pika

from mqkit.backends.base import Depth
from mqkit.backends.rabbitmq import names
from mqkit.destinations import Destination
from mqkit.testing.brokers import Certificates, RabbitProcess
from mqkit.testing.conformance import Harness

# Seconds after which the server tells its own API of changes, and by when it is certain to have done so. Not faster: a tick
# that finds a quorum queue half made ends that and the connection that makes it with code 541 (3.10.8), once in thirty at
# 20 ms. Then: by when the consumers of a queue that was deleted are gone.
TICK, SETTLED, GONE = 0.15, 0.4, 1.0


class Api:
    """The management API of a server."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._base = f"http://{parts.hostname}:{parts.port}/api/"
        login = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}

    def __call__(self, method: str, path: str, document: object = None) -> Any:
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self._base + path, data=data, headers=self._headers, method=method)
        with urllib.request.urlopen(request, timeout=10.0) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def connections(self, vhost: str) -> list[str]:
        return [one["name"] for one in self("GET", "connections") if one.get("vhost") == vhost]

    def close_connections(self, vhost: str) -> int:
        closed = 0
        for name in self.connections(vhost):
            with contextlib.suppress(urllib.error.HTTPError):  # it has ended meanwhile
                self("DELETE", f"connections/{quote(name, safe='')}")
                closed += 1
        return closed


class RabbitServer:
    """A process, and a new virtual host for whoever asks."""

    def __init__(self, process: RabbitProcess) -> None:
        self.process = process
        assert process.management_url is not None
        self.api = Api(process.management_url)
        self.version: str = self.api("GET", "overview")["rabbitmq_version"]

    def new_vhost(self) -> str:
        vhost = f"test-{uuid.uuid4().hex[:12]}"
        self.api("PUT", f"vhosts/{vhost}")
        self.api("PUT", f"permissions/{vhost}/guest", {"configure": ".*", "write": ".*", "read": ".*"})
        return vhost

    def drop_vhost(self, vhost: str) -> None:
        with contextlib.suppress(OSError):
            self.api("DELETE", f"vhosts/{vhost}")

    def url(self, vhost: str, **options: object) -> str:
        management = f"http://127.0.0.1:{self.process.management_port}"
        more = "".join(f"&{name}={value}" for name, value in options.items())
        return f"{self.process.url.rstrip('/')}/{vhost}?management={quote(management, safe='')}{more}"

    def hurry(self) -> None:
        """Have new queues tell the API at once what is in hand, not every 5 seconds."""
        self.process.ctl("eval", f"application:set_env(rabbit, quorum_tick_interval, {int(TICK * 1000)}).")


def running_server(program: Path | None = None) -> Iterator[RabbitServer]:
    """Of another version than the installed one, if a program is named."""
    with tempfile.TemporaryDirectory() as folder:
        certificates = Certificates.make(Path(folder))
        config = {"collect_statistics_interval": str(int(TICK * 1000))}
        with RabbitProcess(config=config, tls=certificates, program=program) as process:
            server = RabbitServer(process)
            server.hurry()
            yield server


class RabbitHarness(Harness):
    """A virtual host per case."""

    def __init__(self, server: RabbitServer) -> None:
        self.server = server
        self.vhost = server.new_vhost()
        super().__init__(server.url(self.vhost), scale=2.0)

    def describe(self) -> Iterable[Depth]:
        time.sleep(SETTLED)  # what is in hand is known from the API only, which is this late
        return super().describe()

    def wait_empty(self, source: Destination[Any], group: str | None = None, within: float = 10.0) -> None:
        """Twice in a row: between two rungs of the ladder a message is in none of them."""
        super().wait_empty(source, group, within)
        super().wait_empty(source, group, within)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        with self.native() as channel:
            properties = pika.BasicProperties(headers=headers)
            channel.basic_publish("", names.queue_of(destination.address), body, properties)

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        found = []
        with self.native() as channel:
            while True:
                method, _, body = channel.basic_get(names.queue_of(destination.address))
                if method is None:
                    return found
                found.append(body)

    def driver(self) -> tuple[str, str]:
        return "pika", "rabbitmq"

    def denied_url(self) -> str:
        return f"amqp://guest:wrong@127.0.0.1:{self.server.process.port}/{self.vhost}"

    def untrusted_url(self) -> str:
        return self.server.process.tls_url

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        self.server.process.freeze()
        try:
            yield
        finally:
            self.server.process.thaw()

    def delete(self, source: Destination[Any], group: str | None = None, **more: Any) -> None:
        """
        Returns when the server has let its consumers go. A quorum queue that is declared again before that keeps them, and
        what it sends them never arrives (3.10.8).
        """
        super().delete(source, group, **more)
        time.sleep(GONE)  # nothing but the client of the consumer sees when that is

    @property
    def system(self) -> str:
        return f"rabbitmq {self.server.version}"

    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.process.port

    def settled_connections(self) -> int:
        """How many connections there are, when that has not changed for a moment; 0 before."""
        before = self.server.api.connections(self.vhost)
        time.sleep(2 * SETTLED)
        return len(before) if sorted(before) == sorted(self.server.api.connections(self.vhost)) else 0

    def kill_connections(self) -> int:
        return self.server.api.close_connections(self.vhost)

    def restart(self) -> None:
        self.server.process.kill()
        self.server.process.start()
        self.server.hurry()

    def close(self) -> None:
        super().close()
        self.server.drop_vhost(self.vhost)

    @contextlib.contextmanager
    def native(self) -> Iterator[Any]:
        connection = pika.BlockingConnection(pika.URLParameters(f"{self.server.process.url.rstrip('/')}/{self.vhost}"))
        try:
            channel = connection.channel()
            channel.confirm_delivery()
            yield channel
        finally:
            connection.close()
