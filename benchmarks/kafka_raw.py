"""kafka-python alone, on a cluster of one node that is started for the occasion: with its defaults, and tuned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

from benchmarks.sample import LARGE, Sample, Stopwatch
from mqkit.testing.brokers import KafkaProcess

MESSAGES = 40_000
PARTITIONS = 4
TOGETHER = 500  # records of one poll, as it is by default
TOPIC, GROUP = "documents", "workers"
TUNED = {"batch_size": 256 * 1024, "linger_ms": 5}

encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(dict[str, str]).decode


@contextmanager
def server() -> Iterator[str]:
    """The address of a node of our own, or the one that MQKIT_BENCH_KAFKA names, as host:port."""
    if address := os.environ.get("MQKIT_BENCH_KAFKA"):
        yield address
        return
    with KafkaProcess() as process:
        yield f"127.0.0.1:{process.port}"


@contextmanager
def topic() -> Iterator[str]:
    """The same with an empty topic."""
    with server() as address:
        admin = KafkaAdminClient(bootstrap_servers=address)
        if TOPIC in admin.list_topics():
            admin.delete_topics([TOPIC])
        admin.create_topics([NewTopic(TOPIC, PARTITIONS, 1)])
        admin.close()
        yield address


def publish() -> Sample:
    """With its defaults, which are acks=all and idempotent."""
    with topic() as address:
        return fill(address, MESSAGES)


def publish_tuned() -> Sample:
    with topic() as address:
        return fill(address, MESSAGES, **TUNED)


def fill(address: str, count: int, **options: Any) -> Sample:
    producer = KafkaProducer(bootstrap_servers=address, **options)
    producer.partitions_for(TOPIC)
    watch = Stopwatch()
    futures = [producer.send(TOPIC, encode(LARGE), headers=_headers(number)) for number in range(count)]
    producer.flush()
    for future in futures:
        future.get(0)
    sample = watch.sample(count)
    producer.close()
    return sample


def _headers(number: int) -> list[tuple[str, bytes]]:
    """What services send along; the time is in the record."""
    return [("id", b"%032x" % number), ("type", b"document"), ("content-type", b"application/json")]


def consume() -> Sample:
    """Poll, a handler for each record, then a commit that is waited for; from the first record on."""
    return _consume(lambda consumer: consumer.commit())


def consume_unwaited() -> Sample:
    """As before, but the next poll does not wait for the commit."""
    return _consume(lambda consumer: consumer.commit_async())


def _consume(commit: Any) -> Sample:
    with topic() as address:
        fill(address, MESSAGES, **TUNED)
        consumer = KafkaConsumer(
            TOPIC,
            bootstrap_servers=address,
            group_id=GROUP,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            max_poll_records=TOGETHER,
        )
        handled, watch, uncounted = 0, None, 0
        while handled < MESSAGES:
            for records in consumer.poll(1000).values():
                for record in records:
                    _handle(decode(record.value))
                handled += len(records)
            if watch is None and handled:
                watch, uncounted = Stopwatch(), handled
            commit(consumer)
        assert watch is not None
        sample = watch.sample(handled - uncounted)
        consumer.close()
        return sample


def _handle(payload: dict[str, str]) -> None: ...
