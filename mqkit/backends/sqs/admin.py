"""Declaring, describing and changing what is on SQS and SNS."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence

from mqkit.backends.base import Address, Declaration, Depth, Outgoing, Received
from mqkit.backends.sqs.declare import Declarer
from mqkit.backends.sqs.desk import Desk, depths
from mqkit.backends.sqs.errors import publish_error
from mqkit.backends.sqs.names import FIFO, Role, is_cut, restored, whole
from mqkit.backends.sqs.places import CONNECTIONS, Places, Route
from mqkit.backends.sqs.reader import HIDDEN, Reader
from mqkit.backends.sqs.sender import Sender, batches, letter_of
from mqkit.backends.sqs.threads import Workers
from mqkit.errors import NotFound

DeskOf = Callable[[Route, int], Desk]  # of a queue, and for how many seconds it hides what it takes


class SqsAdmin:
    """See `base.Admin`. What it has looked at stays hidden from others until it is closed."""

    def __init__(
        self, places: Places, desk_of: DeskOf, sender: Callable[[], Sender], now: Callable[[], float], *, hop: int
    ) -> None:
        self._places = places
        self._desk_of = desk_of
        self._make_sender = sender
        self._sender: Sender | None = None
        self._now = now
        self._hop = hop
        self._readers: dict[Address, Reader] = {}

    def declare(self, declarations: Sequence[Declaration]) -> None:
        for each in declarations:
            Declarer(self._places, make=True).declare(each)

    def check(self, declarations: Sequence[Declaration]) -> None:
        for each in declarations:
            Declarer(self._places, make=False).declare(each)

    def describe(self) -> Sequence[Depth]:
        workers = Workers(CONNECTIONS, "mqkit-sqs-count")
        try:
            queues = list(self._places.queues(self._places.names.prefix))
            counted = workers.each([lambda one=one: self._counted(*one) for one in queues]) if queues else []  # type: ignore[misc]
        finally:
            workers.close()
        found: dict[Address, Depth] = {}
        waiting: dict[Address, int] = {}
        for entry in counted:
            if entry is None:
                continue
            address, role, (ready, hidden, delayed) = entry
            if role in ("delay", "tdelay"):
                waiting[address] = ready + hidden + delayed
            elif role != "live":
                found[address] = Depth(address, ready, hidden, delayed)
        with_groups = {address.name for address in found if address.group and not address.dead}
        for native, _ in self._places.topics():
            known = self._places.names.address(native)
            if known is not None and known[1] == "":
                address = Address("topic", known[0].name)
                if address.name not in with_groups or waiting.get(address):
                    found[address] = Depth(address, 0, 0, 0)
        for address, count in waiting.items():
            depth = found.get(address)
            if depth is not None:
                found[address] = Depth(address, depth.ready, depth.inflight, depth.delayed + count)
        return [found[address] for address in sorted(found)]

    def count(self, address: Address) -> int:
        if (reader := self._readers.get(address)) is not None:
            return len(reader.messages)
        route = self._places.find(address)
        ready, hidden, _ = depths(self._places.sqs, route)
        if address.dead and hidden:
            return len(self._read(address).messages)  # in whose hands they are is found out by waiting for them
        return ready

    def browse(self, address: Address, *, limit: int, after: str | None = None) -> Sequence[Received]:
        if after is None or address not in self._readers:
            self._read(address)
        seen = [held.received for held in self._readers[address].messages]
        if after is not None:
            places = [place for place, received in enumerate(seen) if received.id == after]
            seen = seen[places[-1] + 1 :] if places else []
        return seen[:limit]

    def replace(self, address: Address, replacements: Mapping[str, Sequence[Outgoing]]) -> int:
        if not replacements:
            return 0
        reader = self._readers.get(address) or self._read(address)
        reader.stay()
        there = {held.received.id for held in reader.messages} & replacements.keys()
        self._send([copy for id, copies in replacements.items() if id in there for copy in copies])
        reader.remove(there)
        return len(there)

    def purge(self, address: Address) -> int:
        """By receiving and removing: what AWS calls a purge removes what is in somebody's hands too, and counts nothing."""
        self._let_go()
        route = self._places.find(address)
        reader = Reader(self._desk_of(route, HIDDEN), address, fifo=route.fifo)
        try:
            return reader.drain()
        finally:
            reader.close()

    def delete(self, address: Address) -> None:
        names = self._places.names
        doomed = [
            (native, url)
            for native, url in self._places.queues(names.prefix)
            if (found := self._whose(native, url)) is not None and _belongs(*found, address)
        ]
        for native, url in doomed:
            self._unsubscribe(address, native, url)
            self._ignoring_absence(lambda url=url: self._delete_queue(url))  # type: ignore[misc]
        if (address.kind == "topic" and not address.group) or address.kind == "broadcast":
            for fifo in (False, True):
                if (arn := self._places.arn(names.topic(address, fifo=fifo))) is not None:
                    self._places.sns.call("delete_topic", f"deleting {address}", TopicArn=arn)
        self._places.forget(address)
        self._places.forget(address.dead_letters)

    def close(self) -> None:
        self._let_go()
        if self._sender is not None:
            self._sender.close()

    # -- looking -------------------------------------------------------------------------------------------------------

    def _read(self, address: Address) -> Reader:
        """All that waits there; what was seen before is given back first, for it may be another's by now."""
        if (before := self._readers.pop(address, None)) is not None:
            before.close()
        route = self._places.find(address)
        reader = Reader(self._desk_of(route, HIDDEN), address, fifo=route.fifo)
        try:
            reader.read()
        except NotFound:
            self._places.forget(address)
            reader.close()
            raise
        except BaseException:
            reader.close()
            raise
        self._readers[address] = reader
        return reader

    def _let_go(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _counted(self, native: str, url: str) -> tuple[Address, Role, tuple[int, int, int]] | None:
        try:
            whose = self._whose(native, url)
            if whose is None:
                return None
            return (*whose, depths(self._places.sqs, Route("queue", url, native)))
        except NotFound:  # deleted meanwhile
            return None

    def _whose(self, native: str, url: str) -> tuple[Address, Role] | None:
        names = self._places.names
        if not is_cut(native):
            return names.address(native)
        tags = self._places.sqs.call("list_queue_tags", f"reading the name of {native!r}", QueueUrl=url).get("Tags", {})
        return whole(restored(native, tags, names.prefix).removeprefix(names.prefix).removesuffix(FIFO))

    # -- changing ------------------------------------------------------------------------------------------------------

    def _send(self, copies: Sequence[Outgoing]) -> None:
        if self._sender is None:
            self._sender = self._make_sender()
        replay, now = uuid.uuid4().hex, self._now()
        letters = [letter_of(copy, self._places, now, hop=self._hop, replay=replay) for copy in copies]
        for batch in batches(letters):
            for error in self._sender.send(batch):
                if error is not None:
                    raise publish_error(error)

    def _unsubscribe(self, address: Address, native: str, url: str) -> None:
        found = self._places.names.address(native)
        if address.kind != "topic" or found is None or found[1]:
            return

        def unsubscribe() -> None:
            topic = self._places.find(address._replace(group="", dead=False))
            reply = self._places.sqs.call(
                "get_queue_attributes", f"looking at {native!r}", QueueUrl=url, AttributeNames=["QueueArn"]
            )
            subscription = self._places.subscription(topic.target, reply["Attributes"]["QueueArn"])
            if subscription is not None:
                self._places.sns.call("unsubscribe", f"unsubscribing {native!r}", SubscriptionArn=subscription)

        self._ignoring_absence(unsubscribe)

    def _delete_queue(self, url: str) -> None:
        self._places.sqs.call("delete_queue", f"deleting queue {url.rpartition('/')[2]!r}", QueueUrl=url)

    def _ignoring_absence(self, act: Callable[[], None]) -> None:
        try:
            act()
        except NotFound:
            pass


def _belongs(found: Address, role: Role, address: Address) -> bool:
    """Does a queue go when this address goes?"""
    if address.dead:
        return found == address
    if found.kind != address.kind and not (found.kind == "topic" and address.kind == "topic"):
        return False
    if address.kind == "topic" and not address.group:
        return found.name == address.name
    return found._replace(dead=False) == address and role != "tdelay"
