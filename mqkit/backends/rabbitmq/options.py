"""What the URL of a RabbitMQ server may say, and pika's parameters made of it."""

from __future__ import annotations

import math
import random
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

import pika
from pika.credentials import ExternalCredentials, PlainCredentials

from mqkit._url import Url
from mqkit.errors import ConfigError

PORTS = {"amqps": 5671}
PLAIN_PORT = 5672
MANAGEMENT_PORT = 15672
RESERVED_FOR_DEAD_LETTERS = 4096


@dataclass(frozen=True, kw_only=True)
class RabbitOptions:
    """
    Options of an `amqp://`, `amqps://` or `rabbitmq://` URL.

    Args:
        hosts: More servers of the same cluster to try, `host:port` separated by commas.
        lease: Seconds after which a silent process loses what it holds: two heartbeats, so in steps of 2.
        connect: Seconds one server may take to accept a connection.
        patience: Seconds the server may take to answer anything else, and to answer a probe.
        max_body: Bytes of the largest message. Servers before 4.0 take 128 MiB, later ones 16 MiB if not told otherwise.
        buffer: Messages a listener of a broadcast may lag behind before it loses the oldest.
        auth: `plain` is user and password, `external` the client certificate.
        ca: File of certificates to trust instead of the system's.
        cert: File with the client's certificate.
        key: File with its private key.
        management: URL of the management API without credentials; empty: the server's host, port 15672.
    """

    hosts: str = ""
    lease: float = 20.0
    connect: float = 5.0
    patience: float = 5.0
    max_body: int = 16 << 20
    buffer: int = 10_000
    auth: Literal["plain", "external"] = "plain"
    ca: str = ""
    cert: str = ""
    key: str = ""
    management: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.lease <= 1200:
            raise ValueError(f"lease={self.lease} must be over 0 and at most 1200 seconds")
        if not (0 < self.connect <= 60 and 0 < self.patience <= 60):
            raise ValueError(f"connect={self.connect} and patience={self.patience} must be over 0, at most 60 seconds")
        if self.max_body <= RESERVED_FOR_DEAD_LETTERS:
            raise ValueError(f"max_body={self.max_body} must be over 4096, of which that much is kept for dead letters")
        if self.buffer < 1:
            raise ValueError(f"buffer={self.buffer} must be at least 1")
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key go together")

    @property
    def heartbeat(self) -> int:
        """Seconds between two heartbeats; whole ones, as AMQP has it. The server gives up after two that are missing."""
        return max(1, math.ceil(self.lease / 2))


@dataclass(frozen=True)
class Server:
    """Where the server is and how to get in. Shown without the password."""

    options: RabbitOptions
    addresses: Sequence[tuple[str, int]]
    vhost: str
    username: str
    password: str = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)

    @classmethod
    def of(cls, url: Url, options: RabbitOptions) -> Server:
        """Raises `ConfigError`."""
        if not url.host:
            raise ConfigError(f"{url.scheme} URL: no host; write {url.scheme}://user:password@host/vhost")
        secure = url.scheme == "amqps"
        if not secure and (options.ca or options.cert):
            raise ConfigError(f"{url.scheme} URL: ca, cert and key need TLS; write amqps://")
        if options.auth == "external" and not options.cert:
            raise ConfigError(f"{url.scheme} URL: auth=external needs cert= and key=")
        port = PORTS.get(url.scheme, PLAIN_PORT)
        others = [_address(text, port, url.scheme) for text in options.hosts.split(",") if text]
        return cls(
            options,
            ((url.host, url.port or port), *others),
            url.path.removeprefix("/") or "/",
            url.username or "guest",
            url.password or ("guest" if not url.username else ""),
            _tls(options) if secure else None,
        )

    def __str__(self) -> str:
        hosts = ", ".join(f"{host}:{port}" for host, port in self.addresses)
        return f"RabbitMQ at {hosts}, vhost {self.vhost!r}"

    def parameters(self) -> list[pika.ConnectionParameters]:
        """One per server, in an order that spreads clients over them."""
        options = self.options
        credentials = (
            ExternalCredentials()
            if options.auth == "external"
            else PlainCredentials(self.username, self.password, erase_on_connect=False)
        )
        shuffled = random.SystemRandom().sample(self.addresses, len(self.addresses))
        return [
            pika.ConnectionParameters(
                host=host,
                port=port,
                virtual_host=self.vhost,
                credentials=credentials,
                heartbeat=options.heartbeat,
                blocked_connection_timeout=None,
                connection_attempts=1,
                retry_delay=0,
                socket_timeout=options.connect,
                stack_timeout=options.connect,
                ssl_options=None if self.tls is None else pika.SSLOptions(self.tls, host),
                client_properties={"product": "mqkit", "connection_name": "mqkit"},
            )
            for host, port in shuffled
        ]

    @property
    def management_url(self) -> str:
        """Of this vhost's part of the management API is under it."""
        base = self.options.management or f"http://{self.addresses[0][0]}:{MANAGEMENT_PORT}"
        return f"{base.rstrip('/')}/api"

    @property
    def quoted_vhost(self) -> str:
        return quote(self.vhost, safe="")


def _address(text: str, port: int, scheme: str) -> tuple[str, int]:
    host, _, own = text.strip().rpartition(":") if ":" in text else (text.strip(), "", str(port))
    if not host or not own.isdigit():
        raise ConfigError(f"{scheme} URL option hosts: {text!r} is not host:port")
    return host, int(own)


def _tls(options: RabbitOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca or None)
        if options.cert:
            context.load_cert_chain(options.cert, options.key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"ca={options.ca!r}, cert={options.cert!r} or key={options.key!r} cannot be read: {exc}"
        ) from exc
    return context
