"""What the URL of SQS and SNS may say, and where its calls go."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from mqkit._url import Url
from mqkit.errors import ConfigError

MOST = 10  # entries of one call. Source: AWS SQS API, quotas related to messages
QUEUE_BYTES = 1 << 20  # of a message, and of a batch. Source: AWS SQS quotas, since August 2025
ANY_BODY = QUEUE_BYTES // 4 * 3  # what is no text takes a third more
TOPIC_BYTES = 1 << 18  # ... of a topic. Source: AWS SNS quotas
LONGEST_DELAY = 900  # Source: AWS SQS API, SendMessage, DelaySeconds
LONGEST_WAIT = 20  # Source: AWS SQS API, ReceiveMessage, WaitTimeSeconds
SHORTEST_LEASE = 5
LONGEST_LEASE = 43_200  # from the receive on, extensions included. Source: AWS SQS API, ChangeMessageVisibility
RESERVED_FOR_DEAD_LETTERS = 4096


@dataclass(frozen=True, kw_only=True)
class SqsOptions:
    """
    Options of an `sqs://` URL.

    Args:
        region: Of the queues; empty: as AWS's own configuration says.
        tls: Whether a host of the URL is spoken to by https; AWS itself always is.
        prefix: Begins the names of all queues and topics.
        lease: Seconds after which what a silent process holds goes to another one: the visibility time-out. Whole ones, and
            at least 5: in less it cannot be renewed in time.
        timeout: Seconds to wait for a connection, and for an answer beyond the wait of a long poll.
        wait: Longest seconds one long poll waits for messages; 0 to 20.
        polls: Long polls of one source at a time, at most.
        connections: Calls of one publisher, or of one consumer's settlements, at a time, at most.
        linger: Seconds a settlement waits for others to share its call; nothing waits where keys are kept in order.
        max_body: Bytes of the largest message. SQS takes text only, of up to 1,048,576 bytes; the default is what fits of
            anything else.
        hop: Longest seconds that SQS itself is asked to delay a message; what waits longer is sent on when they are over.
    """

    region: str = ""
    tls: bool = True
    prefix: str = ""
    lease: float = 30.0
    timeout: float = 4.0
    wait: int = LONGEST_WAIT
    polls: int = 8
    connections: int = 8
    linger: float = 0.1
    max_body: int = ANY_BODY
    hop: int = LONGEST_DELAY

    def __post_init__(self) -> None:
        if not 0 < self.lease <= LONGEST_LEASE:
            raise ValueError(f"lease={self.lease} must be over 0 and at most {LONGEST_LEASE} seconds")
        if not 0 < self.timeout <= 60:
            raise ValueError(f"timeout={self.timeout} must be over 0 and at most 60 seconds")
        if not 0 <= self.wait <= LONGEST_WAIT:
            raise ValueError(f"wait={self.wait} must be 0 to {LONGEST_WAIT} seconds")
        if not (1 <= self.polls <= 100 and 1 <= self.connections <= 100):
            raise ValueError(f"polls={self.polls} and connections={self.connections} must be 1 to 100")
        if not 0 <= self.linger <= 1:
            raise ValueError(f"linger={self.linger} must be 0 to 1 second")
        if not RESERVED_FOR_DEAD_LETTERS < self.max_body <= QUEUE_BYTES:
            raise ValueError(
                f"max_body={self.max_body} must be over {RESERVED_FOR_DEAD_LETTERS}, of which that much is kept for dead "
                f"letters, and at most the {QUEUE_BYTES} that SQS takes"
            )
        if not 1 <= self.hop <= LONGEST_DELAY:
            raise ValueError(f"hop={self.hop} must be 1 to {LONGEST_DELAY} seconds")

    @property
    def visibility(self) -> int:
        """The lease as SQS takes it."""
        return max(SHORTEST_LEASE, math.ceil(self.lease))

    @property
    def patience(self) -> int:
        """
        Longest wait of a poll: a message may have been handed out at its first moment or its last, and the lease that is
        left is counted from the first.
        """
        return min(self.wait, self.visibility * 2 // 3)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where calls go, and as whom. Never shows a secret."""

    url: str | None  # None: AWS itself
    region: str | None
    key: str | None = field(repr=False)
    secret: str | None = field(repr=False)

    @classmethod
    def of(cls, url: Url, options: SqsOptions) -> Endpoint:
        """Raises `ConfigError`."""
        if url.path.strip("/"):
            raise ConfigError(f"sqs URL: {url.path!r} means nothing here; prefix= keeps applications apart")
        if bool(url.username) != bool(url.password):
            raise ConfigError("sqs URL: a key and its secret go together, sqs://key:secret@...; or neither")
        address = None
        if url.host:
            host = f"[{url.host}]" if ":" in url.host else url.host
            port = "" if url.port is None else f":{url.port}"
            address = f"{'https' if options.tls else 'http'}://{host}{port}"
        elif not options.tls:
            raise ConfigError("sqs URL: tls=false needs a host; AWS itself is spoken to by https only")
        return cls(
            url=address,
            region=options.region or None,
            key=url.username or None,
            secret=url.password or None,
        )

    def __str__(self) -> str:
        region = f", region {self.region}" if self.region else ""
        return f"SQS at {self.url or 'AWS'}{region}"

    def arguments(self) -> dict[str, Any]:
        """What a client of boto3 is made with."""
        return {
            "endpoint_url": self.url,
            "region_name": self.region,
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
        }
