"""Listening to a broadcast: a queue of its own behind the topic, for as long as it listens."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence

from mqkit.backends.base import Address, Received, Settlement, Turn
from mqkit.backends.sqs import policy, wire
from mqkit.backends.sqs.desk import COUNT, Arrival, Desk
from mqkit.backends.sqs.options import MOST, SqsOptions
from mqkit.backends.sqs.places import Places, Route
from mqkit.backends.sqs.polls import Polls
from mqkit.backends.sqs.sender import Letter, Sender
from mqkit.errors import Lost, MqkitError, NotFound, Unavailable

AHEAD = 10_000  # messages a listener may lag behind before it forgets the oldest
HEARD = 8.0  # seconds until the first probe must have arrived
PROBE = 1.0  # seconds between two probes
SEEN = "mqkit:seen"  # tag of its queue: the minute, since 1970, in which it was last known to live
BEAT = 600.0  # seconds between two such notes
DEAD = 3600.0  # seconds of silence after which anybody removes it


class SqsListener:
    """See `base.Receiver`, of a broadcast: at most once, nothing to settle. It hears from the moment it is made."""

    def __init__(
        self,
        places: Places,
        topic: Route,
        queue: Route,
        desk: Desk,
        sender: Sender,
        address: Address,
        options: SqsOptions,
        now: Callable[[], float],
    ) -> None:
        self.now = now
        self._places = places
        self._topic = topic
        self._queue = queue
        self._desk = desk
        self._sender = sender
        self._address = address
        self._inbox: deque[Received] = deque(maxlen=AHEAD)
        self._bell = threading.Event()
        self._probe = uuid.uuid4().hex
        self._heard = False
        self._noted = time.monotonic()
        self._subscription = ""
        self._polls = Polls(
            self._poll, "mqkit-sqs-listen", most=2, longest=options.patience, pause=0.0, arrived=self._bell.set
        )
        try:
            self._subscribe()
            self._await_probe()
        except BaseException:
            self.close()
            raise

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Broadcasts are not settled."""

    def receive(self, room: int, timeout: float) -> Turn:
        deadline = time.monotonic() + timeout
        self._beat()
        while True:
            self._listen()
            left = deadline - time.monotonic()
            if (room and self._inbox) or left <= 0:
                break
            if self._bell.wait(left):
                self._bell.clear()
                self._listen()
                break
        return Turn([self._inbox.popleft() for _ in range(min(room, len(self._inbox)))])

    def isolate(self, delivery: Received) -> None:
        """A broadcast is never handed out twice."""

    def flush(self, timeout: float) -> Turn:
        del timeout
        return Turn()

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        self._polls.stop()
        with contextlib.suppress(MqkitError):
            if self._subscription:
                what = f"leaving {self._topic.native!r}"
                self._places.sns.call("unsubscribe", what, SubscriptionArn=self._subscription)
        with contextlib.suppress(MqkitError):
            self._places.sqs.call("delete_queue", f"deleting {self._queue.native!r}", QueueUrl=self._queue.target)
        self._sender.close()
        self._desk.close()  # polls that are still under way end as they would

    # -- beginning -----------------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        what = f"subscribing queue {self._queue.native!r} to {self._topic.native!r}"
        reply = self._places.sqs.call(
            "get_queue_attributes", what, QueueUrl=self._queue.target, AttributeNames=["QueueArn"]
        )
        arn = reply["Attributes"]["QueueArn"]
        attributes = {"Policy": policy.permitting("", arn, self._topic.target)}
        self._places.sqs.call("set_queue_attributes", what, QueueUrl=self._queue.target, Attributes=attributes)
        subscribed = self._places.sns.call(
            "subscribe", what, TopicArn=self._topic.target, Protocol="sqs", Endpoint=arn,
            Attributes={"RawMessageDelivery": "true"}, ReturnSubscriptionArn=True,
        )  # fmt: skip
        self._subscription = str(subscribed["SubscriptionArn"])

    def _await_probe(self) -> None:
        """A new subscription begins at some moment that nobody tells: when a message of our own comes through, it has."""
        until, asked = time.monotonic() + HEARD, 0.0
        while not self._heard:
            now = time.monotonic()
            if now > until:
                raise Unavailable(
                    f"{self._address}: what is published does not arrive after {HEARD:g} s; is the topic encrypted with a "
                    "key that it may not use for queues?"
                )
            if now - asked > PROBE:
                asked = now
                attribute = {wire.PROBE: {"DataType": "String", "StringValue": self._probe}}
                [error] = self._sender.send([Letter(self._topic, wire.Packed("probe", attribute, 64))])
                if error is not None:
                    raise error
            self._listen()
            self._bell.wait(0.05)
            self._bell.clear()

    # -- listening -----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            arrived = self._polls.take()
        except NotFound as exc:
            raise Lost(f"{self._address}: the queue of this listener was deleted") from exc
        for raw, head, until in arrived:
            probe = raw.get("MessageAttributes", {}).get(wire.PROBE)
            if probe is None:
                received = wire.received(self._address, self._queue.native, raw, head, until)
                received.lease_until, received.lost = None, 0
                self._inbox.append(received)
            elif probe.get("StringValue") == self._probe:
                self._heard = True
        self._polls.allow(2 * MOST)

    def _poll(self, most: int, wait: int) -> list[Arrival]:
        arrivals = self._desk.poll(most, wait)
        if arrivals:
            with contextlib.suppress(MqkitError):  # retention ends them too
                self._desk.delete([arrival.raw["ReceiptHandle"] for arrival in arrivals])
        return arrivals

    # -- living and dying ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        if time.monotonic() - self._noted > BEAT:
            self._noted = time.monotonic()
            what = f"noting that {self._queue.native!r} is in use"
            self._places.sqs.call("tag_queue", what, QueueUrl=self._queue.target, Tags={SEEN: _minute(self.now())})


def new_queue(places: Places, now: float) -> Route:
    """Of a listener."""
    native = places.names.listener(uuid.uuid4().hex[:20])
    reply = places.sqs.call(
        "create_queue", f"making queue {native!r}", QueueName=native,
        Attributes={"MessageRetentionPeriod": "60"}, tags={SEEN: _minute(now)},
    )  # fmt: skip
    return Route("queue", str(reply["QueueUrl"]), native)


def _minute(now: float) -> str:
    return str(int(now // 60))


def sweep(places: Places, topic: Route, now: float) -> None:
    """Remove what listeners left behind that died: an hour without a note."""
    for native, url in places.queues(places.names.listeners):
        try:
            tags = places.sqs.call("list_queue_tags", f"looking at {native!r}", QueueUrl=url).get("Tags", {})
            seen = tags.get(SEEN, "")
            if not COUNT.fullmatch(seen) or now - 60 * int(seen) < DEAD:
                continue
            what = f"removing {native!r}"
            arn = places.sqs.call("get_queue_attributes", what, QueueUrl=url, AttributeNames=["QueueArn"])
            subscription = places.subscription(topic.target, arn["Attributes"]["QueueArn"])
            if subscription is not None:
                places.sns.call("unsubscribe", what, SubscriptionArn=subscription)
            places.sqs.call("delete_queue", what, QueueUrl=url)
        except NotFound:  # another listener was faster
            continue
