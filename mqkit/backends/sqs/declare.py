"""Making what a declaration needs, and comparing it with what is there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from mqkit._chance import chance
from mqkit.backends.base import Address, Declaration
from mqkit.backends.sqs import policy
from mqkit.backends.sqs.names import tags_of
from mqkit.backends.sqs.patience import Patience
from mqkit.backends.sqs.places import Places, Route
from mqkit.errors import ConfigError, NotFound, TopologyMismatch, Unavailable
from mqkit.native import SnsTopic, SqsQueue

ORDER = "mqkit:order"  # the tag with what the first consumer of a FIFO queue asked for
RETENTION = 1_209_600  # seconds, the longest. Source: AWS SQS API, SetQueueAttributes
USABLE = 5.0  # seconds after which a new queue is to be there. Source: AWS SQS API, CreateQueue
ROUNDS = 20  # writers of one policy that may overtake us
_FIFO_QUEUE = {"FifoQueue": "true", "DeduplicationScope": "messageGroup", "FifoThroughputLimit": "perMessageGroupId"}
_FIFO_TOPIC = {"FifoTopic": "true", "ContentBasedDeduplication": "false"}


def queue_options(declaration: Declaration) -> SqsQueue:
    native = declaration.native
    if isinstance(native, SnsTopic):
        return native.queues
    return native if isinstance(native, SqsQueue) else SqsQueue()


def topic_options(declaration: Declaration) -> SnsTopic:
    return declaration.native if isinstance(declaration.native, SnsTopic) else SnsTopic()


class Declarer:
    """
    For one declaration.

    Args:
        make: Whether to make what is missing; else it is `NotFound`.
    """

    def __init__(self, places: Places, *, make: bool) -> None:
        self._places = places
        self._make = make
        self._patiently = Patience()

    def declare(self, declaration: Declaration) -> None:
        address, fifo = declaration.address, declaration.keyed
        if address.dead:
            self._queue(declaration, fifo=False)
            return
        if declaration.order == "key" and not fifo:
            raise ConfigError(f'{address}: order="key" needs a destination with key=, which is FIFO on SQS')
        if address.kind == "broadcast":
            self._topic(declaration, fifo=False)
            return
        topic = self._topic(declaration, fifo=fifo) if address.kind == "topic" else None
        if topic is not None:
            self._delay(address._replace(group=""))
        if address.kind == "topic" and not address.group:
            return
        queue = self._queue(declaration, fifo=fifo)
        self._queue(Declaration(address.dead_letters), fifo=False)
        if fifo:
            self._delay(address)
            self._patiently(self._agree_on_order, declaration, queue)
        if topic is not None:
            self._subscribe(declaration, topic, queue)

    # -- queues --------------------------------------------------------------------------------------------------------

    def _queue(self, declaration: Declaration, *, fifo: bool) -> Route:
        address, places = declaration.address, self._places
        native = places.names.queue(address, fifo=fifo)
        wanted = {} if address.dead else queue_options(declaration).attributes
        url = self._url(native)
        if url is None:
            if not address.dead and self._url(places.names.queue(address, fifo=not fifo)) is not None:
                raise _other_kind(address, fifo)
            url = self._create(address, native, wanted, fifo=fifo)
        elif wanted:
            self._compare(address, url, wanted)
        route = Route("queue", url, native, fifo)
        places.learn(address, route)
        return route

    def _delay(self, address: Address) -> None:
        native = self._places.names.delay(address)
        if self._url(native) is None:
            self._create(address, native, {}, fifo=False)

    def _create(self, address: Address, native: str, wanted: Mapping[str, str], *, fifo: bool) -> str:
        if not self._make:
            raise NotFound(f"{address} does not exist: there is no queue {native!r} ({self._places.sqs.endpoint})")
        attributes = {"MessageRetentionPeriod": str(RETENTION), **(_FIFO_QUEUE if fifo else {}), **wanted}
        what = f"making queue {native!r}"
        arguments: dict[str, Any] = {"QueueName": native, "Attributes": attributes}
        if tags := tags_of(address, native):
            arguments["tags"] = tags
        try:
            self._patiently(self._places.sqs.call, "create_queue", what, **arguments)
        except TopologyMismatch:  # made by somebody else at the same moment
            url = self._usable(native)
            self._compare(address, url, wanted)
            return url
        return self._usable(native)

    def _usable(self, native: str) -> str:
        until = time.monotonic() + USABLE
        while (url := self._url(native)) is None:
            if time.monotonic() > until:
                raise Unavailable(f"queue {native!r} was made and is not there after {USABLE:g} s")
            time.sleep(0.2)
        return url

    def _url(self, native: str) -> str | None:
        """Of a queue, if there is one."""
        return self._patiently(self._places.exists, native)

    def _compare(self, address: Address, url: str, wanted: Mapping[str, str]) -> None:
        have = self._patiently(self._attributes, url, *wanted) if wanted else {}
        for name, value in wanted.items():
            if not _alike(have.get(name, ""), value):
                raise TopologyMismatch(
                    f"{address} is declared with {name}={value!r} and exists with {name}={have.get(name)!r}; change one of them"
                )

    def _agree_on_order(self, declaration: Declaration, queue: Route) -> None:
        """The first consumer decides. Two that decide at the same moment both read what stayed."""
        wanted = declaration.order
        if wanted is None:
            return
        have = self._order(queue)
        if have is None and self._make:
            what = f"noting the order of queue {queue.native!r}"
            self._places.sqs.call("tag_queue", what, QueueUrl=queue.target, Tags={ORDER: wanted})
            have = self._order(queue)
        if have is not None and have != wanted:
            raise TopologyMismatch(
                f"{declaration.address} is declared with order={wanted!r} and exists with order={have!r}"
            )

    def _order(self, queue: Route) -> str | None:
        reply = self._places.sqs.call(
            "list_queue_tags", f"reading the order of queue {queue.native!r}", QueueUrl=queue.target
        )
        order: str | None = reply.get("Tags", {}).get(ORDER)
        return order

    def _attributes(self, url: str, *names: str) -> Mapping[str, str]:
        what = f"reading attributes of queue {url.rpartition('/')[2]!r}"
        reply = self._places.sqs.call("get_queue_attributes", what, QueueUrl=url, AttributeNames=list(names))
        found: Mapping[str, str] = reply.get("Attributes", {})
        return found

    # -- topics --------------------------------------------------------------------------------------------------------

    def _topic(self, declaration: Declaration, *, fifo: bool) -> Route:
        address = declaration.address._replace(group="")
        places = self._places
        native = places.names.topic(address, fifo=fifo)
        wanted = topic_options(declaration).attributes
        arn = self._topic_arn(native)
        if arn is None:
            if address.kind == "topic" and self._topic_arn(places.names.topic(address, fifo=not fifo)) is not None:
                raise _other_kind(address, fifo)
            if not self._make:
                raise NotFound(f"{address} does not exist: there is no topic {native!r} ({places.sns.endpoint})")
            attributes = {**(_FIFO_TOPIC if fifo else {}), **wanted}
            what = f"making topic {native!r}"
            reply = self._patiently(places.sns.call, "create_topic", what, Name=native, Attributes=attributes)
            arn = str(reply["TopicArn"])
        elif wanted:
            what = f"looking at topic {native!r}"
            reply = self._patiently(places.sns.call, "get_topic_attributes", what, TopicArn=arn)
            have = reply.get("Attributes", {})
            for name, value in wanted.items():
                if not _alike(have.get(name, ""), value):
                    raise TopologyMismatch(
                        f"{address} is declared with {name}={value!r} and exists with {name}={have.get(name)!r}"
                    )
        route = Route("topic", arn, native, fifo)
        places.learn(address, route)
        return route

    def _topic_arn(self, native: str) -> str | None:
        """If there is such a topic."""
        return self._patiently(self._places.arn, native)

    def _subscribe(self, declaration: Declaration, topic: Route, queue: Route) -> None:
        """First the queue lets the topic in, then the topic knows of the queue: what comes to a closed door is lost."""
        arn = self._let_in(topic, queue)
        options = topic_options(declaration)
        filters = options.filters.get(declaration.address.group)
        wanted = {"RawMessageDelivery": "true"}
        if filters is not None:
            wanted |= {"FilterPolicy": json.dumps(filters), "FilterPolicyScope": options.scope}
        subscription = self._subscription(declaration.address, topic, queue, arn, wanted)
        self._compare_subscription(declaration.address, subscription, wanted)

    def _let_in(self, topic: Route, queue: Route) -> str:
        """
        The ARN of the queue, whose policy lets the topic send to it if that is ours to arrange. Policies are written as a
        whole, so two writers lose one of theirs: write until ours stays.
        """
        for _ in range(ROUNDS):
            arn, is_open = self._patiently(self._opened, topic, queue)
            if is_open:
                return arn
            time.sleep(0.02 + 0.1 * chance())
        raise Unavailable(f"letting a topic send to queue {queue.native!r}: others keep writing its policy")

    def _opened(self, topic: Route, queue: Route) -> tuple[str, bool]:
        """The ARN of the queue, and whether there was nothing to write into its policy."""
        have = self._attributes(queue.target, "QueueArn", "Policy")
        arn, document = have["QueueArn"], have.get("Policy", "")
        if not self._make or policy.permits(document, arn, topic.target):
            return arn, True
        new = policy.permitting(document, arn, topic.target)
        what = f"letting a topic send to queue {queue.native!r}"
        self._places.sqs.call("set_queue_attributes", what, QueueUrl=queue.target, Attributes={"Policy": new})
        return arn, False

    def _subscription(self, address: Address, topic: Route, queue: Route, arn: str, wanted: Mapping[str, str]) -> str:
        """Of the queue to the topic, by its ARN."""
        subscription = self._patiently(self._places.subscription, topic.target, arn)
        if subscription is not None:
            return subscription
        if not self._make:
            raise NotFound(f"{address} does not exist: its queue is not subscribed to {topic.native!r}")
        what = f"subscribing queue {queue.native!r} to {topic.native!r}"
        try:
            reply = self._patiently(
                self._places.sns.call, "subscribe", what, TopicArn=topic.target, Protocol="sqs", Endpoint=arn, Attributes=wanted,
                ReturnSubscriptionArn=True,
            )  # fmt: skip
        except ConfigError:  # somebody else was faster, with other attributes; or the filter is none
            subscription = self._patiently(self._places.subscription, topic.target, arn)
            if subscription is None:
                raise
            return subscription
        return str(reply["SubscriptionArn"])

    def _compare_subscription(self, address: Address, subscription: str, wanted: Mapping[str, str]) -> None:
        what = f"looking at the subscription of {address}"
        reply = self._patiently(
            self._places.sns.call, "get_subscription_attributes", what, SubscriptionArn=subscription
        )
        have = reply["Attributes"]
        for name in ("RawMessageDelivery", "FilterPolicy", "FilterPolicyScope"):
            is_, ours = have.get(name, ""), wanted.get(name, "")
            if name == "FilterPolicyScope" and "FilterPolicy" not in wanted:
                continue
            agree = policy.same(is_, ours) if name == "FilterPolicy" else is_.lower() == ours.lower()
            if not agree:
                raise TopologyMismatch(
                    f"{address} is declared with {name}={ours!r} and its subscription exists with {name}={is_!r}; "
                    "change the declaration, or the subscription by hand"
                )


def _other_kind(address: Address, fifo: bool) -> TopologyMismatch:
    without, with_ = ("without", "with") if fifo else ("with", "without")
    return TopologyMismatch(
        f"{address} is declared {with_} key= and exists {without}: only what declares key= is FIFO on AWS"
    )


def _alike(have: str, wanted: str) -> bool:
    """Documents are alike whatever their spelling."""
    if have == wanted:
        return True
    try:
        return bool(json.loads(have) == json.loads(wanted))
    except ValueError:
        return False
