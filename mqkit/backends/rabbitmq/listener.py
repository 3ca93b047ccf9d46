"""Listening to a broadcast: a queue of our own that ends with the connection and forgets the oldest when it is full."""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mqkit.backends.base import Address, Received, Settlement, Turn
from mqkit.backends.rabbitmq import names, wire
from mqkit.backends.rabbitmq.connection import Connection, closing_reason
from mqkit.backends.rabbitmq.errors import refusal
from mqkit.errors import Lost

AHEAD = 500  # messages the server may push before it counts on the bound of the queue

_handles = itertools.count(1)


class RabbitListener:
    """See `base.Receiver`, of a broadcast: at most once, nothing to settle. Hears from the moment it is made."""

    def __init__(self, connection: Connection, address: Address, now: Callable[[], float]) -> None:
        self.now = now
        self._connection = connection
        self._address = address
        self._inbox: deque[tuple[Any, Any, bytes]] = deque()
        self._trouble: Lost | None = None
        self._channel = channel = connection.channel()
        channel.add_on_cancel_callback(self._cancelled)
        queue, buffer = f"mqkit.live.{uuid.uuid4()}", connection.server.options.buffer
        arguments = {"x-queue-type": "classic", "x-max-length": buffer, "x-overflow": "drop-head"}
        call, what = connection.call, f"listening to {address}"
        call(channel, what, channel.queue_declare, queue=queue, exclusive=True, auto_delete=True, arguments=arguments)
        call(channel, what, channel.queue_bind, queue=queue, exchange=names.exchange_of(address), routing_key="#")
        # Without a prefetch everything is pushed at once, and the bound has no effect.
        call(channel, what, channel.basic_qos, prefetch_count=min(AHEAD, buffer))
        call(channel, what, channel.basic_consume, queue=queue, on_message_callback=self._arrived)

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Broadcasts are not settled."""

    def receive(self, room: int, timeout: float) -> Turn:
        self._connection.step(0.0 if room and self._inbox else timeout)
        if self._trouble is not None:
            raise self._trouble
        if not self._channel.is_open:
            error = refusal(closing_reason(self._channel), f"listening to {self._address}")
            raise error if isinstance(error, Lost) else Lost(str(error)) from error
        taken: list[Received] = []
        tag = 0
        while self._inbox and len(taken) < room:
            method, properties, body = self._inbox.popleft()
            tag = method.delivery_tag
            taken.append(wire.received(self._address, next(_handles), method, properties, body, counted=False))
        if tag:
            self._channel.basic_ack(tag, multiple=True)
        return Turn(taken)

    def isolate(self, delivery: Received) -> None:
        """A broadcast is never handed out twice."""

    def flush(self, timeout: float) -> Turn:
        del timeout
        return Turn()

    def wake(self) -> None:
        self._connection.wake()

    def close(self) -> None:
        self._connection.close()

    def _arrived(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        del channel
        self._inbox.append((method, properties, body))

    def _cancelled(self, frame: Any) -> None:
        del frame
        self._trouble = Lost(f"{self._address}: the queue of this listener was deleted")
