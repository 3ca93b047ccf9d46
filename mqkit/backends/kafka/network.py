"""
The driver's connections, mended where they fail: a socket that does not connect is closed, and what a broker says before it
hangs up is heard. A client that is closed leaves no socket open: the driver forgets those that still had something to send.
Reads are large, because the driver's own take 4 KiB at a time.

Names of the driver used here: `KafkaConnectionManager._build_transport`, `_conns` and `_net`, `ClusterMetadata._refresh_loop`, `KafkaNetClient`, `KafkaNetSocket`, the
transports' `_sock` and `_sock_recv`.
"""

from __future__ import annotations

import socket
import ssl
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from kafka import errors as native
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

CHUNK = 1 << 18  # bytes read at once
REFRESH = 0.1  # seconds until metadata that could not be had are asked for again
AWAY = 0.005  # seconds between two rounds of a producer that has no connection; else it takes a whole core
_NOTHING_YET = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Manager(KafkaConnectionManager):  # type: ignore[misc]
    """Of the connections of one client."""

    def __init__(self, net: Any, **settings: Any) -> None:
        super().__init__(net, **settings)
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        refreshing = self.cluster._refresh_loop

        async def keep_refreshing() -> None:
            """The driver's loop also ends, and is never begun again, when a refresh fails that somebody else has asked for."""
            while True:
                try:
                    await refreshing()
                    return
                except native.KafkaError:
                    if not self.bootstrapped:
                        raise
                    await self._net.sleep(REFRESH)

        self.cluster._refresh_loop = keep_refreshing

    def hang_up(self) -> None:
        """When nothing runs any more that could close them."""
        for connection in list(self._sockets):
            connection.close()

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        connection = await _connect(self._net, node.host, node.port, self.config["socket_options"], timeout_at)
        if not self.ssl_enabled:
            transport = KafkaTCPTransport(self._net, connection, host=node.host)
        else:
            secrets = {name: value for name, value in self.config.items() if name.startswith("ssl_")}
            transport = KafkaSSLTransport(self._net, connection, host=node.host, **secrets)
        self._sockets.add(transport._sock)
        try:
            await self._within(timeout_at, transport.handshake)
        except Exception as exc:
            transport.abort(exc)
            raise native.KafkaConnectionError(f"Handshake failed: {exc}") from exc
        transport._sock_recv = _receiver(transport._sock)
        return transport

    async def _within(self, timeout_at: float | None, work: Callable[[], Any]) -> None:
        """A peer that takes a connection and says nothing would be waited for without end."""
        left = None if timeout_at is None else max(0.0, timeout_at - time.monotonic()) * 1000
        await self.wait_for(self.call_soon(work), left)


class Client(KafkaNetClient):  # type: ignore[misc]
    """The connections of one of the driver's own, and what it does with them."""

    def __init__(self, **settings: Any) -> None:
        net = NetworkSelector(**settings)
        super().__init__(net, Manager(net, **settings))

    def await_ready(self, node_id: Any, timeout_ms: Any = 30000) -> bool:
        """
        Of the thread that sends. The driver's raises where the node does not answer, upon which the sender drops the request of
        a transaction that it was about; told False, it asks for the coordinator again and keeps the request.
        """
        try:
            return bool(super().await_ready(node_id, timeout_ms))
        except native.KafkaConnectionError:
            return False

    def poll(self, timeout_ms: Any = None, future: Any = None) -> Any:
        """Of the thread that sends. It asks for the cluster's metadata in each round, which ends the wait of the round."""
        if not any(connection.connected for connection in list(self._manager._conns.values())):
            time.sleep(AWAY)
        return super().poll(timeout_ms, future)

    def close(self, node_id: Any = None) -> None:
        try:
            super().close(node_id)
        finally:
            if node_id is None:
                self._manager.hang_up()


def make_driver(kind: Callable[..., Any], **settings: Any) -> Any:
    """
    A `KafkaConsumer`, `KafkaProducer` or `KafkaAdminClient`. The thread and the sockets of one that cannot be made are ended.

    Raises:
        kafka.errors.KafkaError: What the driver says.
    """
    made: list[Client] = []

    def connect(**given: Any) -> Client:
        made.append(Client(**given))
        return made[-1]

    try:
        return kind(**settings, kafka_client=connect)
    except Exception:  # who interrupts is not kept waiting for a thread that may be looking up a name
        for client in made:
            client.close()
        raise


def learn(manager: Any, topics: Iterable[str], ring: Callable[[], object] = lambda: None) -> Any:
    """
    A future; when it is done, the cluster's metadata say whether these topics exist.

    Args:
        ring: Called then, on the driver's thread.
    """
    metadata, wanted = manager.cluster, list(topics)

    async def ask() -> None:
        if metadata.metadata_refresh_in_progress:  # its answer is to an earlier question
            await metadata.refresh_metadata()
        for topic in wanted:
            metadata.add_topic(topic)
        await metadata.refresh_metadata()

    future = manager.call_soon(ask)
    future.add_both(lambda _: ring())
    return future


async def _connect(net: Any, host: str, port: int, options: Any, timeout_at: float | None) -> Any:
    """To the first address of this name that answers."""
    factory = KafkaNetSocket()
    failure: Exception = native.KafkaConnectionError(f"{host} has no address")
    for family, kind, protocol, _, address in factory.dns_lookup(host, port):
        connection = factory.socket(family, kind, protocol)
        connection.setblocking(False)
        for option in options:
            connection.setsockopt(*option)
        try:
            return await factory.sock_connect(net, connection, address, timeout_at=timeout_at)
        except native.KafkaTimeoutError as exc:
            connection.close()
            raise native.KafkaConnectionError("Connection timed out") from exc
        except (native.KafkaError, OSError) as exc:
            connection.close()
            failure = exc
        except BaseException:
            connection.close()
            raise
    raise failure


def _receiver(connection: Any) -> Callable[[], tuple[bytes, Exception | None]]:
    def receive() -> tuple[bytes, Exception | None]:
        """What has arrived; an end is told when there is nothing before it."""
        chunks: list[bytes] = []
        failure: Exception | None = None
        while True:
            try:
                chunk = connection.recv(CHUNK)
            except _NOTHING_YET:
                break
            except OSError as exc:
                failure = native.KafkaConnectionError(exc)
                break
            if not chunk:
                failure = native.KafkaConnectionError("socket disconnected")
                break
            chunks.append(chunk)
        return b"".join(chunks), None if chunks else failure

    return receive
