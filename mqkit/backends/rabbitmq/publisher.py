"""Publishing: persistent, confirmed, pipelined. One channel per exchange, so that a missing one concerns no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pika import exceptions as amqp

from mqkit.backends.base import Address, Outcome, Outgoing
from mqkit.backends.rabbitmq import frames, names, topology, wire
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import send_without_waiting
from mqkit.backends.rabbitmq.errors import refusal, too_large, translate
from mqkit.backends.rabbitmq.topology import Route
from mqkit.errors import (
    CapabilityMissing,
    Denied,
    MessageTooLarge,
    MqkitError,
    NotFound,
    PublishFailed,
    PublishUnknown,
    TopologyMismatch,
)

QUEUES = ""  # the default exchange, which leads to queues by their names
LADDER = "the ladder of delays"
_SAME_FOR_ALL = (NotFound, Denied, TopologyMismatch)  # refusals that concern everything on the channel


class _Lane:
    """One channel with confirms. The server numbers what it confirms from 1, in the order of publishing."""

    def __init__(self, publisher: RabbitPublisher, name: str) -> None:
        self.name = name
        self.backlog: list[Outgoing] = []  # until the channel is open
        self.unanswered: dict[int, Outgoing] = {}
        self._publisher = publisher
        self._mandatory = name in (QUEUES, LADDER)  # a topic without groups accepts what reaches nobody
        self._frame_max = publisher.connection.frame_max
        self._largest = self._frame_max - 8  # of a body, beside what is around it
        self._next = 1
        self._returned: set[int] = set()
        self._confirming = False
        self._channel = publisher.connection.open_channel(self._opened)
        self._channel.add_on_close_callback(self._closed)

    def send(self, message: Outgoing) -> None:
        """Raises what pika cannot encode."""
        if not self._confirming:
            self.backlog.append(message)
            return
        publisher = self._publisher
        properties = wire.properties(message, publisher.now())
        error = wire.refused(message, properties, self._frame_max)
        if error is not None:
            raise error
        exchange, key = publisher.way(message)
        if frames.SOUND:
            number, link = self._channel.channel_number, publisher.connection
            link.write(frames.publish(number, exchange, key, self._mandatory, properties, message.body, self._largest))
        else:
            self._channel.basic_publish(exchange, key, message.body, properties, self._mandatory)
        self.unanswered[self._next] = message
        self._next += 1

    def _opened(self, channel: Any) -> None:
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_confirm, callback=self._begin)

    def _begin(self, frame: Any) -> None:
        del frame
        self._confirming = True
        if self.name == LADDER:
            send_without_waiting(self._channel, topology.ladder())
        backlog, self.backlog = self.backlog, []
        self._publisher.submit(backlog)

    def _on_return(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """Nobody got it. Comes before its confirm, and does not carry its number."""
        del channel, body
        way, id = (method.exchange, method.routing_key), properties.message_id
        for tag, message in self.unanswered.items():
            if wire.short_id(message.id) == id and tag not in self._returned and self._publisher.way(message) == way:
                self._returned.add(tag)
                return

    def _on_confirm(self, frame: Any) -> None:
        method, unanswered = frame.method, self.unanswered
        tag, accepted = method.delivery_tag, method.NAME == "Basic.Ack"
        answered = [tag]
        if method.multiple:
            answered = []
            for earlier in unanswered:
                if earlier > tag:
                    break
                answered.append(earlier)
        outcomes = self._publisher.outcomes
        for tag in answered:
            message = unanswered.pop(tag, None)
            if message is None:
                continue
            if accepted and tag not in self._returned:
                outcomes.append((message.token, None))
            else:
                outcomes.append((message.token, self._why_not(tag, message)))

    def _why_not(self, tag: int, message: Outgoing) -> MqkitError:
        if tag in self._returned:
            self._returned.discard(tag)
            return NotFound(f"{message.address} does not exist on {self._publisher.connection.server}; declare it")
        return PublishFailed(
            f"{self._publisher.connection.server} refuses message {message.id} to {message.address}: a queue is full"
        )

    def _closed(self, channel: Any, reason: BaseException) -> None:
        self._confirming = False
        self._publisher.lanes.pop(self.name, None)
        if self._publisher.connection.broken:
            self._publisher.void.append(self)
            return
        error = refusal(reason, f"publishing through {self.name!r}" if self.name else "publishing to a queue")
        limit = too_large(reason)  # of one message; what was sent before it may be stored
        for_all = isinstance(error, _SAME_FOR_ALL)
        outcomes = self._publisher.outcomes
        for message in self.backlog:
            outcomes.append((message.token, error if for_all else _not_sent(error)))
        for message in self.unanswered.values():
            if limit is not None and len(message.body) > limit:
                size = f"message {message.id}: {len(message.body)} bytes, and the server takes {limit}"
                outcomes.append(
                    (message.token, MessageTooLarge(f"{size}; raise its max_message_size, or send a reference"))
                )
            else:
                outcomes.append((message.token, error if for_all else _unknown(error)))
        self.backlog, self.unanswered = [], {}
        del channel


class RabbitPublisher:
    """See `base.Publisher`. An outcome without an error is the server's confirm."""

    def __init__(self, connection: Connection, routes: Mapping[Address, Route], now: Callable[[], float]) -> None:
        self.connection = connection
        self.now = now
        self.outcomes: list[Outcome] = []
        self.lanes: dict[str, _Lane] = {}
        self.void: list[_Lane] = []  # of a broken connection
        self._routes = routes

    @property
    def blocked(self) -> str | None:
        return self.connection.blocked

    def submit(self, batch: Sequence[Outgoing]) -> None:
        with self.connection.together():
            for message in batch:
                try:
                    self._lane(message).send(message)
                except amqp.AMQPError as exc:
                    error = translate(exc, f"message {message.id} to {message.address}: RabbitMQ")
                    self.outcomes.append((message.token, error))
                except MqkitError as exc:
                    self.outcomes.append((message.token, exc))

    def collect(self, timeout: float) -> Sequence[Outcome]:
        self.connection.step(0.0 if self.outcomes else timeout)
        outcomes, self.outcomes = self.outcomes, []
        return outcomes

    def wake(self) -> None:
        self.connection.wake()

    def abandon(self) -> Sequence[Outcome]:
        error = self.connection.lost()
        outcomes, self.outcomes = self.outcomes, []
        for lane in [*self.lanes.values(), *self.void]:
            outcomes += [(message.token, _unknown(error)) for message in lane.unanswered.values()]
            outcomes += [(message.token, _not_sent(error)) for message in lane.backlog]
        self.lanes, self.void = {}, []
        return outcomes

    def close(self) -> None:
        self.connection.close()

    def way(self, message: Outgoing) -> tuple[str, str]:
        """The exchange and the routing key."""
        address = message.address
        if address.kind == "broadcast":
            return names.exchange_of(address), message.key if message.key and len(message.key) < 64 else ""
        partition = names.partition_of(message.key, message.id, message.partitions)
        if address.kind == "topic" and not address.group and not address.dead:
            route = self._route(address)
            key = message.headers.get(route.subject, "") if route.subject else str(partition)
            if not message.delay:
                return route.exchange, key
            way = names.way_to_topic(route.exchange, key)
        else:
            queue = names.queue_of(address)
            if message.partitions > 1 and not address.dead:
                queue = names.partition_queue(queue, partition)
            if not message.delay:
                return QUEUES, queue
            way = names.way_to_queue(queue)
        units = names.units_of(message.delay)
        return names.entrance(units), names.delayed_key(units, way)

    def _lane(self, message: Outgoing) -> _Lane:
        address = message.address
        if message.delay:
            name = LADDER
            if address.kind == "topic" and not address.group and self._route(address).kind == "direct":
                raise CapabilityMissing(
                    f"delay={message.delay:g} to {address}: a direct exchange does not know the routing keys of what was "
                    "delayed; use type='topic'"
                )
        elif address.kind == "queue" or address.group or address.dead:
            name = QUEUES
        elif address.kind == "broadcast":
            name = names.exchange_of(address)
        else:
            name = self._route(address).exchange
        lane = self.lanes.get(name)
        if lane is None:
            lane = self.lanes[name] = _Lane(self, name)
        return lane

    def _route(self, address: Address) -> Route:
        return self._routes.get(address) or Route(names.exchange_of(address))


def _unknown(error: MqkitError) -> PublishUnknown:
    unknown = PublishUnknown(f"{error}; the message may have been taken, publish it again with the same id")
    unknown.__cause__ = error
    return unknown


def _not_sent(error: MqkitError) -> PublishFailed:
    failed = PublishFailed(f"not sent: {error}")
    failed.__cause__ = error
    return failed
