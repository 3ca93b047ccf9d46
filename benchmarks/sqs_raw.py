"""boto3 alone, on a MiniStack that is started for the occasion: one message at a time, and ten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from botocore.httpsession import URLLib3Session

from benchmarks.sample import CPU, LARGE, RATE, Sample, Stopwatch
from mqkit.testing.brokers import AwsProcess
from mqkit.testing.brokers.aws import aws_client

MESSAGES = 3_000  # few: MiniStack looks at every message that waits, at each receive
ONE_BY_ONE = 500  # of those that make a call or two for each
TOGETHER = 10
QUEUE = "documents"
CALLS = "calls/msg"

encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(dict[str, str]).decode


class Calls:
    """The HTTP requests that botocore sends in this process, whoever makes its clients; and the stopwatch beside them."""

    def __init__(self) -> None:
        self._count = 0
        send = URLLib3Session.send

        def counted(session: Any, request: Any) -> Any:
            self._count += 1
            return send(session, request)

        URLLib3Session.send = counted
        self.start()

    def start(self) -> None:
        self._before, self._watch = self._count, Stopwatch()

    def sample(self, messages: int) -> Sample:
        sample = self._watch.sample(messages)
        return {CPU: sample[CPU], CALLS: (self._count - self._before) / messages, RATE: sample[RATE]}


def send() -> Sample:
    """`send_message`, one after the other."""
    with client() as (sqs, url):
        calls = Calls()
        for _ in range(ONE_BY_ONE):
            sqs.send_message(QueueUrl=url, MessageBody=encode(LARGE).decode())
        return calls.sample(ONE_BY_ONE)


def send_by_ten() -> Sample:
    """`send_message_batch`, one after the other."""
    with client() as (sqs, url):
        calls = Calls()
        fill(sqs, url, MESSAGES)
        return calls.sample(MESSAGES)


def consume() -> Sample:
    """Receives of one message, and `delete_message`."""

    def delete(sqs: Any, url: str, messages: Sequence[Any]) -> None:
        sqs.delete_message(QueueUrl=url, ReceiptHandle=messages[0]["ReceiptHandle"])

    return _consume(ONE_BY_ONE, 1, delete)


def consume_by_ten() -> Sample:
    """Receives of ten messages, and `delete_message_batch`."""

    def delete(sqs: Any, url: str, messages: Sequence[Any]) -> None:
        entries = [{"Id": str(n), "ReceiptHandle": each["ReceiptHandle"]} for n, each in enumerate(messages)]
        sqs.delete_message_batch(QueueUrl=url, Entries=entries)

    return _consume(MESSAGES, TOGETHER, delete)


def _consume(count: int, together: int, delete: Any) -> Sample:
    with client() as (sqs, url):
        fill(sqs, url, count)
        handled, calls = 0, Calls()
        while handled < count:
            reply = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=together, WaitTimeSeconds=1)
            if messages := reply.get("Messages", []):
                for message in messages:
                    _handle(decode(message["Body"]))
                delete(sqs, url, messages)
                handled += len(messages)
        return calls.sample(handled)


@contextmanager
def client() -> Iterator[tuple[Any, str]]:
    """boto3's, and the URL of an empty queue."""
    with AwsProcess() as server:
        sqs = aws_client("sqs", server.url)
        yield sqs, sqs.create_queue(QueueName=QUEUE)["QueueUrl"]


def fill(sqs: Any, url: str, count: int) -> None:
    for at in range(0, count, TOGETHER):
        entries = [{"Id": str(n), "MessageBody": encode(LARGE).decode()} for n in range(at, at + TOGETHER)]
        sqs.send_message_batch(QueueUrl=url, Entries=entries)


def _handle(payload: dict[str, str]) -> None: ...
