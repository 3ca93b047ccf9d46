"""Looking at what waits in a queue: everything is taken in order, and the socket is dropped, so that it returns in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mqkit.backends.base import Address, Received
from mqkit.backends.rabbitmq import names, wire
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.errors import Unavailable

MOST = 65_535  # messages of one queue that can be seen, which is the largest prefetch
IDLE = 0.3  # seconds without another message after which the rest is in other hands


class Reader:
    """Owns a connection of its own. Raises `NotFound` where the first queue does not exist."""

    def __init__(self, connection: Connection, address: Address, queues: Sequence[str]) -> None:
        self.messages: list[tuple[int, Received]] = []  # with their tags, in order, as far as they were read
        self._connection = connection
        self._address = address
        declarer = Declarer(connection)
        self._expected = sum(declarer.count(queue)[0] for queue in queues)
        self._came: list[tuple[Any, Any, bytes]] = []
        self._channel = connection.channel()
        self._queues = iter(queues)
        self._begun = False
        self._exhausted = not self._expected

    def read(self, count: int) -> None:
        """Until so many are there, or nothing more comes."""
        if self._exhausted:
            return
        if not self._begun:
            self._begun = True
            self._channel.basic_qos(prefetch_count=MOST, callback=_ignore)
            for queue in self._queues:
                self._channel.basic_consume(queue, self._arrived, callback=_ignore)
        heard = time.monotonic()
        limit = self._connection.server.options.patience if self._address.dead and not self.messages else IDLE
        while len(self.messages) < min(count, self._expected):
            self._connection.step(0.05)
            if self._came:
                heard, limit = time.monotonic(), IDLE
                self._take()
            elif time.monotonic() - heard > limit:
                self._exhausted = True
                if self._address.dead and not self.messages:
                    raise Unavailable(f"{self._address} are being read by somebody else; try again")
                return

    def iterate(self) -> Iterator[Received]:
        """All of them, read as they are asked for."""
        at = 0
        while True:
            if at == len(self.messages):
                self.read(at + 1)
                if at == len(self.messages):
                    return
            yield self.messages[at][1]
            at += 1

    def ways(self, most: int) -> Counter[str]:
        """Of a rung of the ladder: how many wait for each target. Beyond `most` messages, in proportion."""
        self.read(most)
        counts = Counter(names.waiting_for(received.native.routing_key) for _, received in self.messages)
        if 0 < len(self.messages) < self._expected:
            factor = self._expected / len(self.messages)
            return Counter({way: round(count * factor) for way, count in counts.items()})
        return counts

    def remove(self, ids: set[str]) -> None:
        """Settle every message with one of these ids, and know it from the server."""
        for tag, received in self.messages:
            if received.id in ids:
                self._channel.basic_ack(tag)
        self._connection.barrier(self._channel)
        before = len(self.messages)
        self.messages = [entry for entry in self.messages if entry[1].id not in ids]
        self._expected -= before - len(self.messages)

    def close(self) -> None:
        self._connection.abort()

    def _arrived(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        del channel
        self._came.append((method, properties, body))

    def _take(self) -> None:
        came, self._came = self._came, []
        for method, properties, body in came:
            tag = method.delivery_tag
            if properties.headers:
                properties.headers.pop(wire.COUNT, None)  # looking changes nothing that can be seen
            received = wire.received(self._address, -tag, method, properties, body, counted=False)
            self.messages.append((tag, received))


def _ignore(frame: Any) -> None:
    del frame
