"""Kombu on SQS, which is a MiniStack: it waits for each message, and acknowledges after the handler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from kombu import Connection

from benchmarks.sample import LARGE, Sample
from benchmarks.sqs_raw import ONE_BY_ONE, QUEUE, Calls
from mqkit.testing.brokers import AwsProcess
from mqkit.testing.brokers.aws import REGION


def kombu_publish() -> Sample:
    with _queue() as queue:
        calls = Calls()
        _fill(queue)
        return calls.sample(ONE_BY_ONE)


def kombu_consume() -> Sample:
    with _queue() as queue:
        _fill(queue)
        calls = Calls()
        for _ in range(ONE_BY_ONE):
            message = queue.get(timeout=10)
            assert message.payload
            message.ack()
        return calls.sample(ONE_BY_ONE)


@contextmanager
def _queue() -> Iterator[Any]:
    with AwsProcess() as server:
        options = {"region": REGION, "is_secure": False, "wait_time_seconds": 1}
        url = f"sqs://test:test@{urlsplit(server.url).hostname}:{server.port}"
        with Connection(url, transport_options=options) as connection:
            queue = connection.SimpleQueue(QUEUE)
            yield queue
            queue.close()


def _fill(queue: Any) -> None:
    for _ in range(ONE_BY_ONE):
        queue.put(LARGE, serializer="json")
