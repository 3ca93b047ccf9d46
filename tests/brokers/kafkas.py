"""Kafka by its own driver: what the tests of its processes and containers ask of it."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import time
import warnings
from collections.abc import Iterable
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from mqkit._url import Url
from mqkit.testing.brokers import BrokerAbsent, KafkaProcess
from mqkit.testing.brokers.kafka import API_VERSIONS, API_VERSIONS_ANSWER
from mqkit.testing.brokers.places import kafka_connection

VERSIONS = ("4.3.0", "3.9.1")


def kafka_process(**options: Any) -> KafkaProcess:
    """Not started. One that is absent fails its tests in CI, and skips them elsewhere."""
    try:
        return KafkaProcess(**options)
    except BrokerAbsent as exc:
        if os.environ.get("CI"):
            pytest.fail(f"{exc}; `make brokers` does so", pytrace=False)
        pytest.skip(str(exc))


def connection(url: str, **options: Any) -> dict[str, Any]:
    return kafka_connection(Url.parse(url)) | options


def topics(url: str, **options: Any) -> set[str]:
    """Of users, by a client that connects for this alone."""
    admin = KafkaAdminClient(**connection(url, **options))
    try:
        return {topic for topic in admin.list_topics() if not topic.startswith("__")}
    finally:
        admin.close()


def refuses(url: str, within: float = 1.0, **options: Any) -> bool:
    """Whether a client that tries for so many seconds is not let in; the driver does not tell it why."""
    made: list[KafkaNetClient] = []

    def make(**settings: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**settings))
        return made[-1]

    try:
        topics(url, kafka_client=make, bootstrap_timeout_ms=round(within * 1000), **options)
    except KafkaError:
        refused = True
    else:
        refused = False
    # The driver leaves the thread and the connections of a client behind that did not get in.
    for client in made:
        client.close()
        client._net.stop()
    made.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    return refused


def answers_over_tls(port: int, context: ssl.SSLContext) -> bool:
    """Raises what the handshake raises; with TLS 1.3 a certificate that is missing is missed at the first answer."""
    with socket.create_connection(("localhost", port), 5.0) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            encrypted.sendall(API_VERSIONS)
            return API_VERSIONS_ANSWER in encrypted.recv(64)


def make_topic(url: str, topic: str) -> None:
    admin = KafkaAdminClient(**connection(url))
    try:
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}})
        admin.wait_for_topics([topic])
    finally:
        admin.close()


def publish(url: str, topic: str, bodies: Iterable[bytes], **options: Any) -> None:
    """Until each is confirmed."""
    producer = KafkaProducer(**connection(url, acks="all", **options))
    try:
        for sent in [producer.send(topic, body) for body in bodies]:
            sent.get(timeout=10.0)
    finally:
        producer.close(timeout=10.0)


def publish_in_transaction(url: str, topic: str, bodies: Iterable[bytes]) -> None:
    producer = KafkaProducer(**connection(url, transactional_id=f"{topic}-writer"))
    try:
        producer.init_transactions()
        producer.begin_transaction()
        for body in bodies:
            producer.send(topic, body)
        producer.commit_transaction()
    finally:
        producer.close(timeout=10.0)


def bodies(url: str, topic: str, count: int, *, group: str | None = None) -> list[bytes]:
    """
    All that a topic of one partition holds, committed; `count` are waited for.

    With a group its position is stored, so that the broker knows the group.
    """
    options = connection(url, group_id=group, auto_offset_reset="earliest", isolation_level="read_committed")
    consumer = KafkaConsumer(enable_auto_commit=False, **options)
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        found: list[bytes] = []
        deadline = time.monotonic() + 20.0
        # The end may lie one behind the last message, where the mark of a transaction is.
        while len(found) < count or consumer.position(partition) < consumer.end_offsets([partition])[partition]:
            assert time.monotonic() < deadline, f"{len(found)} of {count} within 20 s"
            found += [record.value for record in consumer.poll(200).get(partition, [])]
        if group is not None:
            consumer.commit()
        return found
    finally:
        consumer.close()


def groups(url: str) -> set[str]:
    admin = KafkaAdminClient(**connection(url))
    try:
        return {group["group_id"] for group in admin.list_groups()}
    finally:
        admin.close()
