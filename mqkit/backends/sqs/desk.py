"""Desk: the calls by which a consumer of one queue receives, settles and renews."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from mqkit.backends.sqs import wire
from mqkit.backends.sqs.clients import Client
from mqkit.backends.sqs.holdings import Held
from mqkit.backends.sqs.options import MOST
from mqkit.backends.sqs.places import Route
from mqkit.backends.sqs.sender import Answers, Letter, Sender, answers

ALONE = "mqkit:alone:"  # tag of a queue: how often a message, named by a digest of its id, began to run alone
COUNT = re.compile(r"[0-9]{1,12}")  # in a tag, which anybody may have written
_SYSTEM = ["ApproximateReceiveCount", "MessageGroupId", "MessageDeduplicationId", "SentTimestamp"]

_COUNTS = [
    "ApproximateNumberOfMessages",
    "ApproximateNumberOfMessagesNotVisible",
    "ApproximateNumberOfMessagesDelayed",
]


class Arrival(NamedTuple):
    """A message as it came, its head, and the end of its lease by `time.monotonic`, counted from before it was asked for."""

    raw: dict[str, Any]
    head: wire.Head | None
    until: float


class Desk:
    """Any thread. Every call is bounded by the time-outs of its client."""

    def __init__(self, route: Route, fetch: Client, sqs: Client, sender: Sender, visibility: int) -> None:
        self.route = route
        self._fetch = fetch
        self._sender = sender
        self._sqs = sqs
        self._visibility = visibility

    def poll(self, most: int, wait: int, seconds: int = 0) -> list[Arrival]:
        """What comes is hidden from others for so many seconds, or as long as this desk usually does."""
        visibility = seconds or self._visibility
        until = time.monotonic() + visibility
        reply = self._fetch.call(
            "receive_message",
            f"receiving from {self.route.native!r}",
            QueueUrl=self.route.target,
            MaxNumberOfMessages=most,
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            MessageSystemAttributeNames=_SYSTEM,
            MessageAttributeNames=["All"],
        )
        return [Arrival(raw, wire.head_of(raw), until) for raw in reply.get("Messages", ())]

    def hop(self, arrivals: Sequence[Arrival], now: float, hop: int) -> None:
        """Those that are not due yet wait once more: copies of them, then the end of what has come. Raises why one does not."""
        letters = []
        for arrival in arrivals:
            assert arrival.head is not None
            letters.append(Letter(self.route, wire.repack(arrival.raw), wire.seconds(arrival.head.due - now, hop)))
        for error in self.move(arrivals, letters):
            if error is not None:
                raise error

    def replace(self, arrivals: Sequence[Arrival]) -> Answers:
        """Copies of these, and then the end of what has come."""
        return self.move(arrivals, [Letter(self.route, wire.repack(arrival.raw)) for arrival in arrivals])

    def move(self, arrivals: Sequence[Arrival], letters: Sequence[Letter]) -> Answers:
        """Send these on, and remove those that are there. The others come again."""
        sent = self._sender.send_all(letters)
        done = [arrival.raw["ReceiptHandle"] for arrival, error in zip(arrivals, sent, strict=True) if error is None]
        for at in range(0, len(done), MOST):
            self.delete(done[at : at + MOST])
        return sent

    def delete(self, receipts: Sequence[str]) -> Answers:
        """At most ten."""
        what = f"settling in {self.route.native!r}"
        entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(receipts)]
        reply = self._sqs.call("delete_message_batch", what, QueueUrl=self.route.target, Entries=entries)
        return answers(reply, len(entries), self._sqs.endpoint, what)

    def hide(self, held: Sequence[Held], seconds: int) -> Answers:
        """At most ten, from now on; 0 shows them to everybody."""
        what = f"changing leases in {self.route.native!r}"
        entries = [
            {"Id": str(number), "ReceiptHandle": each.receipt, "VisibilityTimeout": seconds}
            for number, each in enumerate(held)
        ]
        reply = self._sqs.call("change_message_visibility_batch", what, QueueUrl=self.route.target, Entries=entries)
        return answers(reply, len(entries), self._sqs.endpoint, what)

    def note_alone(self, id: str, times: int) -> None:
        what = f"noting in {self.route.native!r} that message {id} runs alone"
        self._sqs.call("tag_queue", what, QueueUrl=self.route.target, Tags={alone_tag(id): str(times)})

    def forget_alone(self, ids: Sequence[str]) -> None:
        what = f"removing notes from {self.route.native!r}"
        self._sqs.call("untag_queue", what, QueueUrl=self.route.target, TagKeys=[alone_tag(id) for id in ids])

    def read_alone(self) -> dict[str, int]:
        """By tag."""
        what = f"reading notes of {self.route.native!r}"
        tags = self._sqs.call("list_queue_tags", what, QueueUrl=self.route.target).get("Tags", {})
        return {tag: int(times) for tag, times in tags.items() if tag.startswith(ALONE) and COUNT.fullmatch(times)}

    def depth(self) -> tuple[int, int]:
        """How many messages wait, and how many are hidden in somebody's hands; a moment ago, about."""
        ready, hidden, _ = depths(self._sqs, self.route)
        return ready, hidden

    def close(self) -> None:
        """Of its clients."""
        self._fetch.close()
        self._sender.close()


def depths(sqs: Client, route: Route) -> tuple[int, int, int]:
    """Of a queue: waiting, in somebody's hands, not yet due."""
    what = f"counting messages of {route.native!r}"
    reply = sqs.call("get_queue_attributes", what, QueueUrl=route.target, AttributeNames=_COUNTS)
    ready, hidden, delayed = (int(reply.get("Attributes", {}).get(name, 0)) for name in _COUNTS)
    return ready, hidden, delayed


def alone_tag(id: str) -> str:
    return ALONE + hashlib.sha256(id.encode()).hexdigest()[:32]
