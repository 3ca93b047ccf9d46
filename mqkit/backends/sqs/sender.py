"""Sending: messages as entries of a batch, and what became of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from mqkit.backends.base import Outgoing
from mqkit.backends.sqs import wire
from mqkit.backends.sqs.clients import Client, Reply
from mqkit.backends.sqs.errors import of_code
from mqkit.backends.sqs.names import fifo_id
from mqkit.backends.sqs.options import MOST, QUEUE_BYTES, TOPIC_BYTES
from mqkit.backends.sqs.places import Places, Route
from mqkit.errors import Lost, MessageTooLarge, MqkitError

Answers = Sequence[MqkitError | None]


class Letter(NamedTuple):
    """One message as it is sent, where it goes, and with which ids if that is FIFO."""

    route: Route
    packed: wire.Packed
    delay: int = 0
    group: str = ""
    deduplication: str = ""


def letter_of(message: Outgoing, places: Places, now: float, *, hop: int, replay: str = "") -> Letter:
    """
    Args:
        now: The publisher's clock.
        hop: Longest seconds of one delay.
        replay: Sets this copy apart from every other one, where its queue drops copies.

    Raises:
        NotFound: Its destination does not exist.
        MessageTooLarge: It would be refused.
    """
    route = places.find(message.address)
    packed = wire.pack(message, now, hop=hop)
    if packed.size > limit_of(route):  # also where it waits in a queue first
        raise MessageTooLarge(
            f"message {message.id} to {message.address} is {packed.size:,} bytes with its headers, as text, and "
            f"{'SNS' if route.kind == 'topic' else 'SQS'} takes {limit_of(route):,}; store the payload elsewhere and publish "
            "a reference to it"
        )
    if message.delay > 0 and (route.fifo or route.kind == "topic"):
        route = places.delay(message.address)
    if not route.fifo:
        return Letter(route, packed, wire.seconds(message.delay, hop))
    deduplication = fifo_id(f"{message.id}:r{replay}") if replay else wire.deduplication_id(message)
    return Letter(route, packed, 0, wire.group_id(message), deduplication)


def limit_of(route: Route) -> int:
    """Bytes of a batch."""
    return TOPIC_BYTES if route.kind == "topic" else QUEUE_BYTES


def batches(letters: Iterable[Letter]) -> Iterable[list[Letter]]:
    """By what one call takes: ten of one route, and so many bytes."""
    batch: list[Letter] = []
    size = 0
    for letter in letters:
        full = len(batch) == MOST or size + letter.packed.size > limit_of(letter.route)
        if batch and (full or batch[0].route != letter.route):
            yield batch
            batch, size = [], 0
        batch.append(letter)
        size += letter.packed.size
    if batch:
        yield batch


class Sender:
    """Any thread."""

    def __init__(self, sqs: Client, sns: Callable[[], Client]) -> None:
        self._sqs = sqs
        self._make_sns = sns
        self._sns: Client | None = None
        self._lock = threading.Lock()

    def send(self, letters: Sequence[Letter]) -> Answers:
        """
        One batch, as `batches` cuts it: for each letter None, or why it is not known to be there.

        Raises:
            Lost: Nobody knows of any.
            Unavailable, Denied, NotFound, ...: None was sent.
        """
        route, what = letters[0].route, f"sending to {letters[0].route.native!r}"
        if route.kind == "queue":
            entries = [_queue_entry(number, letter) for number, letter in enumerate(letters)]
            reply = self._sqs.call("send_message_batch", what, QueueUrl=route.target, Entries=entries)
        else:
            entries = [_topic_entry(number, letter) for number, letter in enumerate(letters)]
            reply = self._topics().call(
                "publish_batch", what, TopicArn=route.target, PublishBatchRequestEntries=entries
            )
        return answers(reply, len(letters), self._sqs.endpoint, what)

    def send_all(self, letters: Iterable[Letter]) -> Answers:
        """In as many calls as it takes, one after the other. What a call fails with is the answer of its letters."""
        found: list[MqkitError | None] = []
        for batch in batches(letters):
            try:
                found += self.send(batch)
            except MqkitError as exc:
                found += [exc] * len(batch)
        return found

    def close(self) -> None:
        self._sqs.close()
        if self._sns is not None:
            self._sns.close()

    def _topics(self) -> Client:
        """Made when the first message goes to a topic."""
        with self._lock:
            if self._sns is None:
                self._sns = self._make_sns()
            return self._sns


def answers(reply: Reply, count: int, endpoint: object, what: str) -> Answers:
    """Of a batch whose entries were numbered: one that is in neither list is unknown."""
    unknown = Lost(f"{endpoint} has not said what became of it ({what})")
    found: dict[str, MqkitError | None] = {str(number): unknown for number in range(count)}
    for entry in reply.get("Successful", ()):
        found[entry["Id"]] = None
    for entry in reply.get("Failed", ()):
        found[entry["Id"]] = of_code(entry.get("Code", ""), entry.get("Message", ""), endpoint, what)
    return list(found.values())[:count]


def _queue_entry(number: int, letter: Letter) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "Id": str(number),
        "MessageBody": letter.packed.body,
        "MessageAttributes": letter.packed.attributes,
    }
    if letter.delay:
        entry["DelaySeconds"] = letter.delay
    return entry | _fifo(letter)


def _topic_entry(number: int, letter: Letter) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "Id": str(number),
        "Message": letter.packed.body,
        "MessageAttributes": letter.packed.attributes,
    }
    return entry | _fifo(letter)


def _fifo(letter: Letter) -> dict[str, str]:
    if not letter.route.fifo:
        return {}
    return {"MessageGroupId": letter.group, "MessageDeduplicationId": letter.deduplication}
