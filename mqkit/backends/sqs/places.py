"""Where addresses lead on SQS and SNS, as far as this process has learned it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from mqkit.backends.base import Address
from mqkit.backends.sqs.clients import Client, Clients, Reply
from mqkit.backends.sqs.names import Names
from mqkit.errors import NotFound

CONNECTIONS = 8  # calls of all admins and look-ups of one bus at a time


class Route(NamedTuple):
    """What is sent to: a queue by its URL, or a topic by its ARN."""

    kind: Literal["queue", "topic"]
    target: str
    native: str  # its name
    fifo: bool = False


class Places:
    """Any thread."""

    def __init__(self, clients: Clients, names: Names) -> None:
        self.names = names
        self._clients = clients
        self._lock = threading.Lock()
        self._made: dict[str, Client] = {}
        self._routes: dict[Address, Route] = {}
        self._delays: dict[Address, Route] = {}
        self._stem: str | None = None

    @property
    def sqs(self) -> Client:
        """For looking and declaring."""
        return self._client("sqs")

    @property
    def sns(self) -> Client:
        return self._client("sns")

    def find(self, address: Address) -> Route:
        """
        Where messages for an address are sent.

        Raises:
            NotFound: There is no such thing, FIFO or not.
        """
        route = self._routes.get(address)
        if route is None:
            route = self._topic(address) if _is_topic(address) else self._queue(address)
            self._routes[address] = route
        return route

    def delay(self, address: Address) -> Route:
        """Where messages for a topic or a FIFO queue wait. Raises `NotFound`."""
        route = self._delays.get(address)
        if route is None:
            native = self.names.delay(address)
            route = self._delays[address] = Route("queue", self.url(native), native)
        return route

    def learn(self, address: Address, route: Route) -> None:
        self._routes[address] = route

    def forget(self, address: Address) -> None:
        """It is not there any more, or not there as it was."""
        self._routes.pop(address, None)
        self._delays.pop(address, None)

    def url(self, native: str) -> str:
        """Of a queue. Raises `NotFound`."""
        reply = self.sqs.call("get_queue_url", f"looking for queue {native!r}", QueueName=native)
        return str(reply["QueueUrl"])

    def exists(self, native: str) -> str | None:
        """The URL of a queue, if there is one."""
        try:
            return self.url(native)
        except NotFound:
            return None

    def arn(self, native: str) -> str | None:
        """Of a topic, if there is one."""
        stem = self._topic_stem()
        if stem is None:
            return None
        try:
            self.sns.call("get_topic_attributes", f"looking for topic {native!r}", TopicArn=stem + native)
        except NotFound:
            return None
        return stem + native

    def topics(self) -> Iterator[tuple[str, str]]:
        """Name and ARN of every topic whose name begins with our prefix."""
        for reply in self._pages("list_topics"):
            for topic in reply.get("Topics", []):
                native = topic["TopicArn"].rpartition(":")[2]
                if native.startswith(self.names.prefix):
                    yield native, topic["TopicArn"]

    def subscription(self, topic_arn: str, queue_arn: str) -> str | None:
        """Of a queue to a topic, if there is one."""
        for reply in self._pages("list_subscriptions_by_topic", TopicArn=topic_arn):
            for each in reply.get("Subscriptions", []):
                if each["Endpoint"] == queue_arn:
                    return str(each["SubscriptionArn"])
        return None

    def queues(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Name and URL of every queue whose name begins like this."""
        arguments: dict[str, Any] = {"QueueNamePrefix": prefix} if prefix else {}
        while True:
            reply = self.sqs.call("list_queues", "looking for queues", MaxResults=1000, **arguments)
            for url in reply.get("QueueUrls", []):
                yield url.rpartition("/")[2], url
            if not reply.get("NextToken"):
                return
            arguments["NextToken"] = reply["NextToken"]

    def close(self) -> None:
        for client in self._made.values():
            client.close()
        self._made.clear()

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._made = {}

    def _client(self, service: str) -> Client:
        with self._lock:
            if service not in self._made:
                self._made[service] = self._clients.make(service, connections=CONNECTIONS, checked=True)
            return self._made[service]

    def _queue(self, address: Address) -> Route:
        for fifo in (False,) if address.dead else (False, True):
            native = self.names.queue(address, fifo=fifo)
            if (url := self.exists(native)) is not None:
                return Route("queue", url, native, fifo)
        raise NotFound(f"{address} does not exist ({self._clients.endpoint}); declare it")

    def _topic(self, address: Address) -> Route:
        for fifo in (False, True):
            native = self.names.topic(address, fifo=fifo)
            if (arn := self.arn(native)) is not None:
                return Route("topic", arn, native, fifo)
        raise NotFound(f"{address} does not exist ({self._clients.endpoint}); declare it")

    def _topic_stem(self) -> str | None:
        """How the ARN of every topic begins: with partition, region and account. None: there are no topics."""
        if self._stem is None:
            for topic in self.sns.call("list_topics", "looking for topics").get("Topics", []):
                self._stem = topic["TopicArn"].rpartition(":")[0] + ":"
                break
        return self._stem

    def _pages(self, operation: str, **arguments: Any) -> Iterator[Reply]:
        while True:
            reply = self.sns.call(operation, f"{operation.replace('_', ' ')} of SNS", **arguments)
            yield reply
            if not reply.get("NextToken"):
                return
            arguments["NextToken"] = reply["NextToken"]


def _is_topic(address: Address) -> bool:
    return address.kind == "broadcast" or (address.kind == "topic" and not address.group)
