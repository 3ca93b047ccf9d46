"""Redis: native streams and consumer groups, with leases, key locks and delays kept in scripts."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from mqkit._clock import Clock
from mqkit._url import Url, parse_options
from mqkit.backends.base import Address, Admin, Backend, Capabilities, Declaration, Outgoing, Publisher, Receiver
from mqkit.backends.redis import scripts
from mqkit.backends.redis.admin import RedisAdmin, open_source
from mqkit.backends.redis.clock import ServerClock
from mqkit.backends.redis.connection import Connection
from mqkit.backends.redis.durability import refuse_unfit, warnings_of
from mqkit.backends.redis.keyed import KeyedReceiver
from mqkit.backends.redis.keys import Keys
from mqkit.backends.redis.listener import RedisListener
from mqkit.backends.redis.options import RedisOptions, server_of
from mqkit.backends.redis.publisher import RedisPublisher
from mqkit.backends.redis.receiver import RedisReceiver
from mqkit.backends.redis.source import Registered
from mqkit.errors import CapabilityMissing


class RedisBackend(Backend):
    """See `base.Backend`. `redis://`, `rediss://` with TLS, and `redis+sentinel://`."""

    virtual_clock = False

    def __init__(self, url: Url, clock: Clock) -> None:
        del clock  # leases are shared between machines, so time is the server's
        self._options = parse_options(RedisOptions, url)
        self._server = server_of(url, self._options)
        self._keys = Keys(self._options.prefix)
        self._declared: dict[Address, Registered] = {}  # by this process, where publishing has more to do than to add
        self.capabilities = Capabilities(
            name="redis",
            durable="unknown",
            survives_process=True,
            processes=True,
            atomic=True,
            order_by_key=True,
            delay=math.inf,
            release=math.inf,
            delay_resolution=0.001,
            ttl=True,
            priorities=0,
            replay=True,
            broadcast=True,
            counts_deliveries=True,
            lost="exact",
            lease=self._options.lease,
            wake=0.25,
            max_body=self._options.max_body,
            settles_at_once=True,
        )

    def publisher(self) -> Publisher:
        clock = ServerClock()
        connection = self._checked(clock)
        try:
            connection.load(scripts.OF_PUBLISHERS)
        except BaseException:
            connection.close()
            raise
        options = self._options
        return RedisPublisher(
            connection,
            self._keys,
            clock,
            patience=options.timeout,
            replicas=options.wait_replicas,
            declared=self._declared,
        )

    def receiver(self, source: Declaration, window: int) -> Receiver:
        del window  # a read never takes more than the room it is given
        address, clock = source.address, ServerClock()
        connection = self._checked(clock)
        try:
            if address.kind == "broadcast":
                return RedisListener(connection, address, self._keys.of(address), clock, self._options.timeout)
            found = open_source(connection, self._keys, source)
            make = KeyedReceiver if found.ordered else RedisReceiver
            connect = functools.partial(self.connect, clock)
            return make(connection, connect, self._keys, found, clock, self._options.lease, self._declared)
        except BaseException:
            connection.close()
            raise

    def admin(self) -> Admin:
        clock = ServerClock()
        return RedisAdmin(self.connect(clock), self._keys, clock, self._declared)

    def publish_within(self, native: Any, batch: Sequence[Outgoing]) -> None:
        raise CapabilityMissing(f"native={native!r}: redis takes part in no transaction of yours")

    def warnings(self) -> Iterable[str]:
        connection = self.connect(ServerClock())
        try:
            return warnings_of(connection, self._options)
        finally:
            connection.close()

    def close(self) -> None:
        """Every connection belongs to a publisher, receiver or admin."""

    def after_fork(self) -> None:
        """Connections look at the process before each use; nothing is kept here."""

    def connect(self, clock: ServerClock) -> Connection:
        return Connection(self._server, self._options, clock, self._keys.owners)

    def _checked(self, clock: ServerClock) -> Connection:
        """For who is going to stay: a server that would lose messages is refused before it gets any."""
        connection = self.connect(clock)
        try:
            refuse_unfit(connection, self._options)
        except BaseException:
            connection.close()
            raise
        return connection
