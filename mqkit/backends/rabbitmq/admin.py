"""Declaring, describing and changing what is on the server."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mqkit.backends.base import Address, Declaration, Depth, Outgoing, Received
from mqkit.backends.rabbitmq import names, topology
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.backends.rabbitmq.errors import is_internal
from mqkit.backends.rabbitmq.management import Management
from mqkit.backends.rabbitmq.options import Server
from mqkit.backends.rabbitmq.publisher import RabbitPublisher
from mqkit.backends.rabbitmq.reader import Reader, await_turn
from mqkit.backends.rabbitmq.topology import Exchange, Queue, Route, Step
from mqkit.errors import Lost, MqkitError, NotFound, TopologyMismatch, Unavailable


class RabbitAdmin:
    """See `base.Admin`. Connects when it has to; one connection per admin, and one more while it looks at messages."""

    def __init__(self, server: Server, routes: dict[Address, Route], now: Callable[[], float]) -> None:
        self._server = server
        self._routes = routes
        self._now = now
        self._management = Management(server)
        self._connection: Connection | None = None
        self._opened: Declarer | None = None
        self._reader: tuple[Address, Reader] | None = None

    def declare(self, declarations: Sequence[Declaration]) -> None:
        done: set[Any] = set()  # names of what several of them need
        for declaration in declarations:
            for step in topology.steps(declaration):
                name = repr(step)
                if name not in done:
                    self._make(declaration, step)
                done.add(name)
            self._learn(declaration)

    def check(self, declarations: Sequence[Declaration]) -> None:
        for declaration in declarations:
            try:
                for step in topology.steps(declaration):
                    if step[0] in _SHARED:
                        continue
                    if isinstance(step, Queue):
                        self._declarer.count(step.name)
                    elif isinstance(step, Exchange):
                        self._declarer.look(step.name)
            except NotFound as exc:
                raise NotFound(f"{declaration.address} does not exist on {self._server}") from exc
            self._learn(declaration)

    def describe(self) -> Sequence[Depth]:
        # In the order in which messages move, so that none is overlooked on its way: ladder, queue, hands.
        delayed = self._delayed()
        found: dict[Address, list[int]] = {}
        sources = {queue["name"]: address for queue in self._management.queues() if (address := _owner(queue))}
        for queue, address in sources.items():
            try:
                found.setdefault(address, [0, 0, 0])[0] += self._declarer.count(queue)[0]
            except NotFound:
                continue
        for described in self._management.queues():
            if described["name"] in sources:
                found[sources[described["name"]]][1] += described.get("messages_unacknowledged", 0)
        topics = {names.address_of_exchange(exchange) for exchange in self._management.exchanges()} - {None}
        ways = {_way(address): address for address in (*found, *filter(None, topics))}
        for way, count in delayed.items():
            owner = ways.get(way) or ways.get(_without_partition(way))
            if owner is not None:
                found.setdefault(owner, [0, 0, 0])[2] += count
        with_groups = {(address.kind, address.name) for address in found}
        for topic in topics:
            if topic is not None and (topic.kind, topic.name) not in with_groups:
                found[topic] = [0, 0, 0]
        return [Depth(address, *counts) for address, counts in found.items()]

    def count(self, address: Address) -> int:
        if address.dead:  # of which it is kept from others, so that the number stays true
            return self._reader_of(address).expected
        return sum(self._declarer.count(queue)[0] for queue in self._queues_of(address))

    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        reader = self._reader_of(address)
        try:
            messages: Iterator[Received] = reader.iterate()
            if after is not None:
                messages = itertools.dropwhile(lambda message: message.id != after, messages)
                next(messages, None)
            return list(itertools.islice(messages, limit))
        finally:
            if not address.dead:  # what is looked at is nobody else's meanwhile
                self._drop_reader()

    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        if not replacements:
            return 0
        reader = self._reader_of(address)
        reader.read(2**31)
        there = dict.fromkeys(received.id for _, received in reader.messages if received.id in replacements)
        failed: dict[str, MqkitError] = {}
        self._publish([(id, copy) for id in there for copy in replacements[id]], failed)
        settled = set(there) - set(failed)
        if settled:
            reader.remove(settled)
        self._drop_reader()
        if failed:
            raise next(iter(failed.values()))
        return len(settled)

    def purge(self, address: Address) -> int:
        self._drop_reader()
        queues = self._queues_of(address)
        if address.dead:  # what another reader holds would stay
            await_turn(self._link, self._declarer, address, time.monotonic() + self._server.options.patience)
        count = 0
        for queue in queues:
            channel = self._declarer.channel
            count += self._link.call(channel, f"purging {address}", channel.queue_purge, queue=queue).message_count
        return count

    def delete(self, address: Address) -> None:
        self._drop_reader()
        if address.kind != "queue" and not address.group:
            exchange = self._routes.get(address, Route(names.exchange_of(address))).exchange
            if address.kind == "topic":
                for queue in self._management.queues_bound_to(exchange):
                    group = names.address_of_queue(queue)
                    if group is not None and group.name == address.name:
                        self._delete_source(group._replace(kind="topic"))
            channel = self._declarer.channel
            self._link.call(channel, f"deleting {address}", channel.exchange_delete, exchange=exchange)
        else:
            self._delete_source(address)

    def close(self) -> None:
        self._drop_reader()
        if self._connection is not None:
            self._connection.close()
            self._connection = self._opened = None

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _link(self) -> Connection:
        if self._connection is not None and self._connection.broken:
            self._connection.abort()
            self._connection = self._opened = None
        if self._connection is None:
            self._connection = Connection(self._server)
        return self._connection

    @property
    def _declarer(self) -> Declarer:
        link = self._link
        if self._opened is None:
            self._opened = Declarer(link)
        return self._opened

    def _learn(self, declaration: Declaration) -> None:
        address = declaration.address
        if address.kind == "topic" and not address.dead:
            self._routes[address._replace(group="")] = topology.route_of(declaration)

    def _make(self, declaration: Declaration, step: Step) -> None:
        """Whoever does not consume a source takes its queues with either order."""
        try:
            self._made(step)
        except TopologyMismatch as exc:
            other = topology.with_other_order(declaration, step)
            try:
                if other is None:
                    raise
                self._made(other)
            except TopologyMismatch:
                text = f"{declaration.address} exists with another key, order, priorities or native options"
                raise TopologyMismatch(f"{text}: {exc}") from exc

    def _made(self, step: Step) -> None:
        try:
            self._declarer.make(step)
        except Lost as exc:
            if not is_internal(exc):
                raise
            # So ends a connection when the server looks at a quorum queue that is half made (3.10.8). What is there stays.
            self._declarer.make(step)

    def _queues_of(self, address: Address) -> list[str]:
        """Those that exist. Raises `NotFound`."""
        name = names.queue_of(address)
        try:
            self._declarer.count(name)
        except NotFound:
            if address.dead:
                raise
            partitions = list(self._partitions(name))
            if not partitions:
                raise NotFound(f"{address} does not exist on {self._server}; declare it first") from None
            return partitions
        return [name]

    def _partitions(self, name: str) -> Iterator[str]:
        for partition in itertools.count():
            queue = names.partition_queue(name, partition)
            try:
                self._declarer.count(queue)
            except NotFound:
                return
            yield queue

    def _delete_source(self, address: Address) -> None:
        doomed = [names.queue_of(address)]
        if not address.dead:
            doomed += [*self._partitions(doomed[0]), names.queue_of(address.dead_letters), names.notes_of(address)]
        for queue in doomed:
            channel = self._declarer.channel
            self._link.call(channel, f"deleting {address}", channel.queue_delete, queue=queue)

    def _reader_of(self, address: Address) -> Reader:
        if self._reader is None or self._reader[0] != address:
            self._drop_reader()
            queues = self._queues_of(address)
            self._reader = (address, Reader(self._server, address, queues))
        return self._reader[1]

    def _drop_reader(self) -> None:
        if self._reader is not None:
            self._reader[1].close()
            self._reader = None

    def _publish(self, copies: Sequence[tuple[str, Outgoing]], failed: dict[str, MqkitError]) -> None:
        """Until each is answered; `failed` gets the ids of those that were not taken."""
        if not copies:
            return
        publisher = RabbitPublisher(Connection(self._server), self._routes, self._now)
        owners = {id(copy): owner for owner, copy in copies}
        tokens = [copy.token for _, copy in copies]
        deadline = time.monotonic() + self._server.options.patience
        try:
            for _, copy in copies:
                copy.token = id(copy)
            publisher.submit([copy for _, copy in copies])
            waiting = set(owners)
            while waiting:
                if time.monotonic() > deadline:
                    raise Unavailable(
                        f"{self._server} did not confirm {len(waiting)} copies in time; nothing was removed"
                    )
                for token, error in publisher.collect(0.1):
                    waiting.discard(token)
                    deadline = time.monotonic() + self._server.options.patience
                    if error is not None:
                        failed.setdefault(owners[token], error)
        finally:
            for (_, copy), token in zip(copies, tokens, strict=True):
                copy.token = token
            publisher.close()

    def _delayed(self) -> Counter[str]:
        """What waits in the ladder, by the way it will take."""
        counts: Counter[str] = Counter()
        held: list[Reader] = []
        try:
            for level in reversed(range(names.RUNGS)):
                try:
                    count = self._declarer.count(names.rung(level))[0]
                except NotFound:
                    break
                if count:
                    reader = Reader(self._server, Address("queue", names.rung(level)), [names.rung(level)])
                    held.append(reader)
                    counts += reader.ways(_MOST_DELAYED)
        finally:
            for reader in held:
                reader.close()
        return counts


_SHARED = (names.UNDELIVERABLE, names.DELIVER)  # made with whatever is declared first
_MOST_DELAYED = 10_000  # messages of one rung that are looked at; of more their owners are estimated


def _owner(queue: Mapping[str, Any]) -> Address | None:
    full = (queue.get("arguments") or {}).get(names.ADDRESS)
    return names.address_of_queue(queue["name"], full if isinstance(full, str) else None)


def _way(address: Address) -> str:
    if address.kind == "topic" and not address.group:
        return names.way_to_topic(names.exchange_of(address), "")
    return names.way_to_queue(names.queue_of(address))


def _without_partition(way: str) -> str:
    if way.startswith("t."):
        return way[: way.rindex(".") + 1]
    return way.rpartition("//")[0]
