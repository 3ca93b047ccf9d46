"""
Probe: asks the brokers of a URL, before a client is made, why they cannot be used.

The driver's clients try again until their time is over and then only say "unable to bootstrap".
"""

from __future__ import annotations

import socket
import ssl
from typing import Any

from kafka import errors as native
from kafka.net.selector import NetworkSelector

from mqkit.backends.kafka.errors import translate
from mqkit.backends.kafka.network import Manager
from mqkit.backends.kafka.options import Cluster
from mqkit.errors import ConfigError, Denied, MqkitError

LONGEST = 4.0  # seconds for one broker
FAREWELL = 2000  # milliseconds


def probe(cluster: Cluster) -> None:
    """
    Return when one of the brokers answers.

    Raises:
        Denied: It knows this user, or we know its certificate, and the answer is no.
        ConfigError: It does not speak like this.
        Unavailable: None is there.
    """
    failure: MqkitError | None = None
    for broker in cluster.brokers:
        try:
            _knock(broker, cluster)
            _introduce(broker, cluster)
            return
        except (native.KafkaError, OSError) as exc:
            error = translate(exc, cluster)
            error.__cause__ = exc
            failure = error if failure is None or isinstance(error, (Denied, ConfigError)) else failure
    if failure is not None:
        raise failure


def _knock(broker: str, cluster: Cluster) -> None:
    """Without the driver, which leaves a socket open when this fails."""
    host, _, port = broker.rpartition(":")
    with socket.create_connection((host, int(port)), _timeout(cluster)) as connection:
        if cluster.tls is not None:
            try:
                cluster.tls.wrap_socket(connection, server_hostname=host).close()
            except ssl.SSLCertVerificationError:
                raise
            except (ssl.SSLError, ConnectionResetError) as exc:
                raise ConfigError(f"{cluster} does not speak TLS here; write kafka:// ({exc})") from exc


def _introduce(broker: str, cluster: Cluster) -> None:
    """The login, and a first question, which is where a client without a certificate is turned away."""
    net = NetworkSelector(client_id="mqkit-probe")
    manager = Manager(net, **cluster.settings() | {"bootstrap_servers": [broker]})
    net.start()
    try:
        [node] = manager.cluster.bootstrap_brokers()
        net.run(_ask, manager, node.node_id, _timeout(cluster) * 1000)
    finally:
        manager.close()
        net.stop(FAREWELL)
        try:
            net.close()
        finally:
            manager.hang_up()


def _timeout(cluster: Cluster) -> float:
    return min(cluster.options.patience, LONGEST)


async def _ask(manager: Any, node: Any, timeout_ms: float) -> None:
    connection = manager.get_connection(node, timeout_ms=timeout_ms, pop_on_close=False, refresh_metadata_on_err=False)
    try:
        await connection
        await manager.wait_for(manager.call_soon(manager.cluster.refresh_metadata, node), timeout_ms)
    finally:
        connection.close()
