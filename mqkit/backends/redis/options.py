"""What the URL of a Redis server may say."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from mqkit._url import Url
from mqkit.errors import ConfigError

LONGEST_LEASE = 31 * 86_400  # seconds


@dataclass(frozen=True, kw_only=True)
class RedisOptions:
    """
    Options of a `redis://`, `rediss://` or `redis+sentinel://` URL.

    Args:
        prefix: Begins every key; holds exactly one `{tag}`, so that a cluster keeps all keys on one node.
        lease: Seconds after which what a silent receiver holds goes to another one; at least 0.5 and at most 31 days.
        timeout: Seconds to wait for a connection, and for an answer of the server.
        max_body: Bytes of the largest message.
        wait_replicas: Replicas that must have a message before its publish is confirmed.
        evict: What to do with a server that deletes keys when its memory is full: `refuse` or `allow`.
        client_name: As `CLIENT LIST` shows it; needs the right to `CLIENT SETNAME`.
        ca: File with certificates to trust, for `rediss://`; the system's own without it.
        cert: File with the client's certificate.
        key: File with its private key.
        service: Name of the primary, for `redis+sentinel://`.
        sentinels: More sentinels, as `host:port,host:port`.
        sentinel_username: User of the sentinels themselves, where they ask for a login.
        sentinel_password: ... and its password.
        tls: Encrypt the connections to sentinels and to the server that they name.
    """

    prefix: str = "{mqkit}:"
    lease: float = 30.0
    timeout: float = 5.0
    max_body: int = 16 << 20
    wait_replicas: int = 0
    evict: Literal["refuse", "allow"] = "refuse"
    client_name: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    service: str = ""
    sentinels: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    tls: bool = False

    def __post_init__(self) -> None:
        if self.prefix.count("{") != 1 or not re.search(r"\{[^{}]+\}", self.prefix):
            raise ValueError(f"prefix={self.prefix!r} must hold exactly one {{tag}}, such as {{shop}}:")
        if not self.lease >= 0.5:
            raise ValueError(f"lease={self.lease} is too short to be renewed in time; use at least 0.5 seconds")
        if self.lease > LONGEST_LEASE:
            raise ValueError(
                f"lease={self.lease} is longer than anything may be held; use at most {LONGEST_LEASE} seconds"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout={self.timeout} must be over 0 seconds")
        if self.max_body <= 4096:
            raise ValueError(f"max_body={self.max_body} must be over 4096, of which that much is kept for dead letters")
        if self.max_body > 511 << 20:
            raise ValueError(f"max_body={self.max_body} is over the 511 MiB that a Redis server takes")
        if self.wait_replicas < 0:
            raise ValueError(f"wait_replicas={self.wait_replicas} must not be negative")
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key go together: the client's certificate and its private key")


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where to connect, and as whom. Never shows its password."""

    host: str
    port: int
    username: str
    password: str
    db: int
    tls: bool
    sentinels: tuple[tuple[str, int], ...] = ()  # ask these for the primary instead

    def __repr__(self) -> str:
        return f"Server({self})"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def server_of(url: Url, options: RedisOptions) -> Server:
    """Raises `ConfigError`."""
    number = url.path.strip("/")
    if number and not number.isdecimal():
        raise ConfigError(f"the path of a {url.scheme} URL is the number of a database, and {number!r} is none")
    sentinel = url.scheme == "redis+sentinel"
    tls = url.scheme == "rediss" or (sentinel and options.tls)
    if not tls and (options.ca or options.cert):
        raise ConfigError(f"ca, cert and key are for TLS: use rediss:// instead of {url.scheme}://")
    if options.tls and not tls:
        raise ConfigError(f"tls=true goes with redis+sentinel://; with {url.scheme}:// use rediss:// instead")
    if sentinel and not options.service:
        raise ConfigError("a redis+sentinel URL needs ?service=, the name under which the sentinels watch the primary")
    if not sentinel and (
        options.service or options.sentinels or options.sentinel_username or options.sentinel_password
    ):
        raise ConfigError(
            f"service, sentinels, sentinel_username and sentinel_password go with redis+sentinel://, not with {url.scheme}://"
        )
    if options.sentinel_username and not options.sentinel_password:
        raise ConfigError("sentinel_username needs a sentinel_password")
    host, port = url.host or "localhost", url.port or (26379 if sentinel else 6379)
    return Server(
        host=host,
        port=port,
        username=url.username,
        password=url.password,
        db=int(number or 0),
        tls=tls,
        sentinels=((host, port), *_hosts(options.sentinels)) if sentinel else (),
    )


def _hosts(text: str) -> list[tuple[str, int]]:
    hosts = []
    for part in filter(None, text.split(",")):
        host, _, port = part.strip().rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"redis+sentinel URL option sentinels: {part!r} is not host:port")
        hosts.append((host, int(port)))
    return hosts
