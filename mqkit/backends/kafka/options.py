"""What the URL of a Kafka cluster may say, and the driver's settings made of it."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kafka import codec

from mqkit._url import Url
from mqkit.errors import ConfigError, ExtraMissing

PORT = 9092
ROOM = 1 << 16  # bytes beyond its body that a message may take: headers, and what stands before a batch
LIBRARIES = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}  # of the compressions that Python lacks
RESERVED_FOR_DEAD_LETTERS = 4096


@dataclass(frozen=True, kw_only=True)
class KafkaOptions:
    """
    Options of a `kafka://` URL, or of `kafka+ssl://` with TLS.

    Args:
        hosts: More brokers to begin with, `host:port` separated by commas; the rest of the cluster is learned from them.
        prefix: Begins the names of all topics and consumer groups.
        lease: Seconds after which what a process that died had in hand goes to another one; at least 0.5, and
            what the cluster allows (`group.min.session.timeout.ms`, 6 s unless set).
        patience: Seconds to wait for a connection, and for an answer.
        partitions: Of queues and topics that are made here and declare only one: as many processes can share the work.
        replication: Copies of each partition of topics that are made here; 0: as the cluster says.
        compression: Of published messages; all but gzip need a library of their own.
        max_body: Bytes of the largest message; the topics that are made here take as much.
        sasl_mechanism: How `user:password@` of the URL is used; nothing without a user.
        ca: File of certificates to trust instead of the system's.
        cert: File with the client's certificate.
        key: File with its private key.
        instance: A name of this process that no other one has, kept over its restarts: it gets its partitions back at once.
    """

    hosts: str = ""
    prefix: str = ""
    lease: float = 10.0
    patience: float = 10.0
    partitions: int = 4
    replication: int = 0
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    max_body: int = 1 << 20
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    ca: str = ""
    cert: str = ""
    key: str = ""
    instance: str = ""

    @property
    def largest(self) -> int:
        """Bytes of the largest batch that topics which are made here take, unless their own `config` says otherwise."""
        return self.max_body + ROOM

    def __post_init__(self) -> None:
        if not 0.5 <= self.lease <= 1800:
            raise ValueError(f"lease={self.lease} must be at least 0.5 and at most 1800 seconds")
        if not 0 < self.patience <= 60:
            raise ValueError(f"patience={self.patience} must be over 0 and at most 60 seconds")
        if not 1 <= self.partitions <= 10_000:
            raise ValueError(f"partitions={self.partitions} must be at least 1 and at most 10,000")
        if self.replication < 0:
            raise ValueError(f"replication={self.replication} must not be negative")
        if self.max_body <= RESERVED_FOR_DEAD_LETTERS:
            raise ValueError(f"max_body={self.max_body} must be over 4096, of which that much is kept for dead letters")
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key go together: the client's certificate and its private key")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the cluster is and how to get in. Shown without the password."""

    options: KafkaOptions
    brokers: Sequence[str]
    username: str
    password: str = field(repr=False)
    tls: ssl.SSLContext | None = field(repr=False)

    @classmethod
    def of(cls, url: Url, options: KafkaOptions) -> Cluster:
        """Raises `ConfigError`."""
        if not url.host:
            raise ConfigError(f"{url.scheme} URL: no host; write {url.scheme}://host:{PORT}")
        if url.path.strip("/"):
            raise ConfigError(f"{url.scheme} URL: {url.path!r} means nothing here; prefix= keeps applications apart")
        secure = url.scheme == "kafka+ssl"
        if not secure and (options.ca or options.cert):
            raise ConfigError(f"{url.scheme} URL: ca, cert and key need TLS; write kafka+ssl://")
        if (name := LIBRARIES.get(options.compression)) and not getattr(codec, f"has_{options.compression}")():
            raise ExtraMissing(f"{url.scheme} URL: compression={options.compression} needs {name}: pip install {name}")
        others = [_address(text, url.scheme) for text in options.hosts.split(",") if text.strip()]
        return cls(
            options=options,
            brokers=(f"{url.host}:{url.port or PORT}", *others),
            username=url.username,
            password=url.password,
            tls=_tls(options) if secure else None,
        )

    def __str__(self) -> str:
        return f"Kafka at {', '.join(self.brokers)}"

    def settings(self) -> dict[str, Any]:
        """What every client of the driver is told."""
        options = self.options
        settings: dict[str, Any] = {
            "bootstrap_servers": list(self.brokers),
            "client_id": "mqkit",
            "security_protocol": ("SASL_" if self.username else "") + ("SSL" if self.tls else "PLAINTEXT"),
            "ssl_context": self.tls,
            "bootstrap_timeout_ms": _ms(options.patience),
            "request_timeout_ms": _ms(max(options.patience, options.lease + 1)),
            "reconnect_backoff_max_ms": 1000,
        }
        if self.username:
            settings |= {
                "sasl_mechanism": options.sasl_mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": self.password,
            }
        return settings


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _address(text: str, scheme: str) -> str:
    host, _, port = text.strip().rpartition(":") if ":" in text else (text.strip(), "", str(PORT))
    if not host or not port.isdigit():
        raise ConfigError(f"{scheme} URL option hosts: {text!r} is not host:port")
    return f"{host}:{port}"


def _tls(options: KafkaOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca or None)
        if options.cert:
            context.load_cert_chain(options.cert, options.key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"ca={options.ca!r}, cert={options.cert!r} or key={options.key!r} cannot be read: {exc}"
        ) from exc
    return context
