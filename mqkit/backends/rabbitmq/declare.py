"""Carrying out the steps of a topology on a channel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.topology import Bind, BindExchange, Exchange, Queue, Step


class Declarer:
    """
    Declares one thing after the other and waits for each answer.

    A refusal closes the channel it was asked on; the next step opens another one.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Any = None

    def make(self, step: Step) -> None:
        """Harmless where it exists. Raises `TopologyMismatch` with the difference in the server's words, or `Denied`."""
        method, kwargs = _request(self.channel, step)
        self._connection.call(self.channel, f"declaring {step}", method, **kwargs)

    def count(self, queue: str) -> tuple[int, int]:
        """Messages that wait there, and consumers. Raises `NotFound`."""
        what = f"looking at queue {queue!r}"
        answer = self._connection.call(self.channel, what, self.channel.queue_declare, queue=queue, passive=True)
        return answer.message_count, answer.consumer_count

    def look(self, exchange: str) -> None:
        """Raises `NotFound`."""
        what = f"looking at exchange {exchange!r}"
        self._connection.call(self.channel, what, self.channel.exchange_declare, exchange=exchange, passive=True)

    @property
    def channel(self) -> Any:
        if self._channel is None or not self._channel.is_open:
            self._channel = self._connection.channel()
        return self._channel


def send_without_waiting(channel: Any, steps: Iterable[Step]) -> None:
    """What follows on this channel finds them made; a refusal closes it."""
    for step in steps:
        method, kwargs = _request(channel, step)
        method(**kwargs)


def _request(channel: Any, step: Step) -> tuple[Any, dict[str, Any]]:
    if isinstance(step, Exchange):
        kwargs = {"exchange": step.name, "exchange_type": step.kind, "durable": True, "arguments": step.arguments}
        return channel.exchange_declare, kwargs
    if isinstance(step, Queue):
        return channel.queue_declare, {"queue": step.name, "durable": True, "arguments": dict(step.arguments)}
    if isinstance(step, Bind):
        kwargs = {"queue": step.queue, "exchange": step.exchange, "routing_key": step.key, "arguments": step.arguments}
        return channel.queue_bind, kwargs
    assert isinstance(step, BindExchange)
    return channel.exchange_bind, {"destination": step.target, "source": step.source, "routing_key": step.key}
