"""Listening to a broadcast: one subscription, read as it comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mqkit.backends.base import Address, Received, Settlement, Turn
from mqkit.backends.redis.clock import ServerClock
from mqkit.backends.redis.connection import Bell, Connection, wait
from mqkit.backends.redis.wire import from_live, pack
from mqkit.errors import Lost, MqkitError

_KEPT = 10_000  # messages a listener may lag behind; then it loses the oldest
_PING = 5.0  # seconds of silence after which the server is asked whether it is there


class RedisListener:
    """See `base.Receiver`, of a broadcast: at most once, nothing to settle."""

    def __init__(
        self, connection: Connection, address: Address, channel: str, clock: ServerClock, patience: float
    ) -> None:
        self._connection = connection
        self._address = address
        self._clock = clock
        self._patience = patience
        self._bell = Bell()
        self._inbox: deque[Received] = deque(maxlen=_KEPT)
        self._heard = time.monotonic()
        self._asked: float | None = None
        self._count = 0
        connection.send(pack("SUBSCRIBE", channel))
        confirmed = connection.reply()  # from now on it listens
        if isinstance(confirmed, MqkitError):
            raise confirmed

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Broadcasts are not settled."""

    def receive(self, room: int, timeout: float) -> Turn:
        self._read()
        deadline = time.monotonic() + timeout
        while not (room and self._inbox) and not self._bell.answered():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            wait(self._bell, self._connection, min(left, _PING))
            self._read()
        return Turn([self._inbox.popleft() for _ in range(min(room, len(self._inbox)))])

    def isolate(self, delivery: Received) -> None:
        """A broadcast is never handed out twice."""

    def flush(self, timeout: float) -> Turn:
        del timeout
        return Turn()

    def wake(self) -> None:
        self._bell.ring()

    def now(self) -> float:
        return self._clock.now()

    def close(self) -> None:
        self._connection.close()
        self._bell.close()

    def _read(self) -> None:
        """Whatever has come, also with full hands: a server drops listeners that do not read."""
        connection = self._connection
        while connection.readable():
            self._take(connection.reply())
            self._heard, self._asked = time.monotonic(), None
        now = time.monotonic()
        if self._asked is not None and now - self._asked > self._patience:
            raise Lost("Redis server does not answer its listener; what was broadcast meanwhile is missed")
        if self._asked is None and now - self._heard > _PING:
            connection.send(pack("PING"))
            self._asked = now

    def _take(self, reply: Any) -> None:
        if isinstance(reply, MqkitError):
            raise Lost(f"Redis server ended the subscription: {reply}") from reply
        if reply[0] == b"message":
            self._count += 1
            self._inbox.append(from_live(self._address, reply[2], self._count))
