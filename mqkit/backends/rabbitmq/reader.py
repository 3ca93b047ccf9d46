"""Looking at what waits in a queue: everything is taken in order, and the socket is dropped, so that it returns in order."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mqkit.backends.base import Address, Received
from mqkit.backends.rabbitmq import names, wire
from mqkit.backends.rabbitmq.connection import AT_ONCE, Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.backends.rabbitmq.options import Server
from mqkit.backends.rabbitmq.tags import Tags
from mqkit.errors import Unavailable

MOST = 65_535  # messages of one queue that can be seen, which is the largest prefetch
IDLE = 0.3  # seconds without another message after which the server is asked whether there are more
LOOK = 0.02  # seconds between two looks whether somebody else has let go


class Reader:
    """
    Opens a connection of its own.

    Dead letters have one reader at a time, which holds all of them, and of what is in hand the server tells others not even
    the number. So the next one waits for its turn, as long as the server's usual patience.

    Raises:
        NotFound: The first queue does not exist.
        Unavailable: Somebody else reads these dead letters.
    """

    def __init__(self, server: Server, address: Address, queues: Sequence[str]) -> None:
        self.messages: list[tuple[int, Received]] = []  # with their tags, in order, as far as they were read
        self.expected = 0  # how many there are, read or not
        self._connection = Connection(server)
        self._address = address
        self._queues = queues
        self._came: list[tuple[Any, Any, bytes]] = []
        self._channel: Any = None
        self._tags = Tags()
        self._consumers: list[str] = []
        self._exhausted = False
        try:
            self._look(self._until())
        except BaseException:
            self.close()
            raise

    def read(self, count: int) -> None:
        """Until so many are there, or nothing more comes."""
        heard, until = time.monotonic(), self._until()
        while not self._exhausted and len(self.messages) < min(count, self.expected):
            if self._channel is None:
                self._consume()
            self._connection.step(0.05)
            if not self._came and time.monotonic() - heard > IDLE:
                self._ask()
                if not self._came:
                    self._go_without(until)
                heard = time.monotonic()
            if self._came:
                heard = time.monotonic()
                self._take()

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
        if 0 < len(self.messages) < self.expected:
            factor = self.expected / len(self.messages)
            return Counter({way: round(count * factor) for way, count in counts.items()})
        return counts

    def remove(self, ids: set[str]) -> None:
        """
        Settle every message with one of these ids, so that none is there again. `close` follows.

        Raises:
            Lost, Unavailable, ...: Nobody knows which were settled.
        """
        for tag, received in self.messages:
            if received.id in ids:
                self._tags.done(tag)
        acknowledgements = list(self._tags.acknowledgements())
        self._connection.acknowledge(self._channel, acknowledgements, patiently=True)
        if len(acknowledgements) > AT_ONCE:
            self._connection.cancel(self._channel, self._consumers)
        self._connection.barrier(self._channel)
        before = len(self.messages)
        self.messages = [entry for entry in self.messages if entry[1].id not in ids]
        self.expected -= before - len(self.messages)

    def close(self) -> None:
        self._connection.abort()

    def _until(self) -> float:
        return time.monotonic() + self._connection.server.options.patience

    def _look(self, until: float) -> None:
        declarer = Declarer(self._connection)
        if self._address.dead:
            self.expected = await_turn(self._connection, declarer, self._address, until)
        else:
            self.expected = sum(declarer.count(queue)[0] for queue in self._queues)

    def _consume(self) -> None:
        self._channel = self._connection.channel()
        self._channel.basic_qos(prefetch_count=MOST, callback=_ignore)
        self._tags, self._consumers = Tags(), []
        for queue in self._queues:
            self._consumers.append(self._channel.basic_consume(queue, self._arrived, callback=_ignore))

    def _ask(self) -> None:
        """However slow the way is: what the server had sent before its answers has come with them."""
        for queue in self._queues:
            what = f"looking at queue {queue!r}"
            self._connection.call(self._channel, what, self._channel.queue_declare, queue=queue, passive=True)

    def _go_without(self, until: float) -> None:
        """The rest is in other hands; of dead letters all of them, when somebody else began at the same moment."""
        if self.messages or not self._address.dead:
            self._exhausted = True
        elif time.monotonic() > until:
            raise _taken(self._address)
        else:
            self.close()
            self._connection, self._channel = Connection(self._connection.server), None
            self._look(until)

    def _arrived(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        del channel
        self._tags.came(method.delivery_tag)
        self._came.append((method, properties, body))

    def _take(self) -> None:
        came, self._came = self._came, []
        for method, properties, body in came:
            tag = method.delivery_tag
            if properties.headers:
                properties.headers.pop(wire.COUNT, None)  # looking changes nothing that can be seen
            received = wire.received(self._address, -tag, method, properties, body, counted=False)
            self.messages.append((tag, received))


def await_turn(connection: Connection, declarer: Declarer, dead: Address, until: float) -> int:
    """
    How many there are, once nobody reads these dead letters: both from one answer, for in the next one somebody else may
    have begun. Twice in a row, because what a reader held comes back a moment after he is gone. Raises `Unavailable` if that
    is not by `until` of `time.monotonic()`.
    """
    queue = names.queue_of(dead)
    before = None
    while True:
        ready, consumers = declarer.count(queue)
        if not consumers and ready == before:
            return ready
        before = None if consumers else ready
        if time.monotonic() > until:
            raise _taken(dead)
        connection.step(LOOK)


def _taken(dead: Address) -> Unavailable:
    return Unavailable(f"{dead} are being read by somebody else; try again")


def _ignore(frame: Any) -> None:
    del frame
