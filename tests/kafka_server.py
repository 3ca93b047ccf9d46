"""What the suite on Kafka has in its hands: a node of its own, and the harness."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import confluent_kafka
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from mqkit.backends.kafka.names import Names, lane_for
from mqkit.backends.kafka.network import make_driver
from mqkit.destinations import Destination
from mqkit.message import Message
from mqkit.native import KafkaPartition, KafkaTopic
from mqkit.testing.brokers import Certificates, KafkaProcess
from mqkit.testing.chaos import FaultProxy
from mqkit.testing.conformance import Harness

_numbers = itertools.count(1)


def running_server(version: str) -> Iterator[KafkaProcess]:
    with tempfile.TemporaryDirectory() as folder:
        config = {"group.min.session.timeout.ms": "400"}
        certificates = Certificates.make(Path(folder))
        users = {"keeper": "right"}
        with KafkaProcess(version=version, users=users, tls=certificates, proxied=True, config=config) as server:
            yield server


class KafkaHarness(Harness):
    """
    A foreign client is kafka-python on the same cluster; each case has a prefix of its own.

    It is made by `make_driver`, because by itself it leaves a socket open that had something to send when it was closed.
    """

    def __init__(self, server: KafkaProcess, version: str) -> None:
        self._server = server
        self._version = version
        self.prefix = f"case{next(_numbers)}."
        self._kafka_names = Names(self.prefix)
        super().__init__(f"{server.url}?{urlencode({'prefix': self.prefix})}", scale=3.0)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        self.write(self._kafka_names.topic(destination.address), body, headers)

    def write(self, topic: str, body: bytes, headers: Mapping[str, str | None]) -> None:
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": self._address}
        )  # takes null for the value of a header
        producer.produce(topic, body, headers=list(headers.items()))
        assert producer.flush(10) == 0

    def lane(self, delay: float) -> str:
        """The topic in which what is delayed so long waits first."""
        return self._kafka_names.lane(lane_for(delay))

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        return [record.value for record in self.records(self._kafka_names.topic(destination.address))]

    def topic(self, destination: Destination[Any]) -> str:
        """As other clients name it."""
        return self._kafka_names.topic(destination.address)

    def topic_of_the_dead(self, destination: Destination[Any]) -> str:
        return self._kafka_names.topic(destination.address.dead_letters)

    def records(self, topic: str) -> list[Any]:
        """What is in a topic of Kafka, as other clients read it."""
        consumer = make_driver(
            KafkaConsumer,
            bootstrap_servers=self._address,
            group_id=None,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        ends, found = consumer.end_offsets(partitions), []
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(100).values():
                found += records
        consumer.close()
        return found

    @contextmanager
    def control(self) -> Iterator[KafkaAdminClient]:
        """What an operator of the cluster has."""
        admin = make_driver(KafkaAdminClient, bootstrap_servers=self._address)
        try:
            yield admin
        finally:
            admin.close()

    def end_of(self, destination: Destination[Any]) -> int:
        """Records that were ever written there, and the marks of transactions."""
        topic = self._kafka_names.topic(destination.address)
        consumer = make_driver(KafkaConsumer, bootstrap_servers=self._address, group_id=None)
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        total = sum(consumer.end_offsets(partitions).values())
        consumer.close()
        return total

    def members(self, source: Destination[Any]) -> set[str]:
        """Who consumes it, by the names that the group gives anew to each who joins."""
        group = self._kafka_names.group(source.address)
        with self.control() as admin:
            return {member["member_id"] for member in admin.describe_groups([group])[group]["members"]}

    def find_native(self, destination: Destination[Any], native: Any) -> bytes:
        consumer = make_driver(KafkaConsumer, bootstrap_servers=self._address, group_id=None)
        partition = TopicPartition(native.topic, native.partition)
        consumer.assign([partition])
        consumer.seek(partition, native.offset)
        records: list[Any] = []
        while not records:
            records = consumer.poll(100).get(partition, [])
        consumer.close()
        assert records[0].offset == native.offset
        body: bytes = records[0].value
        return body

    @property
    def fetched_ahead(self) -> int:
        return 100_000  # of these small ones; one fetch brings a mebibyte

    def retention(self, seconds: float) -> object:
        return KafkaTopic(retain=seconds)

    def partition_of(self, message: Message) -> int:
        number: int = message.native.partition
        return number

    def to_partition(self, number: int) -> object:
        return KafkaPartition(number)

    @contextmanager
    def outage(self) -> Iterator[None]:
        self._server.kill()
        try:
            yield
        finally:
            self._server.start()

    @property
    def system(self) -> str:
        return f"kafka {self._version}"

    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.proxied_port

    def close(self) -> None:
        """A server that keeps the topics of every case takes long to start again."""
        super().close()
        admin = make_driver(KafkaAdminClient, bootstrap_servers=self._address)
        try:
            admin.delete_topics([topic for topic in admin.list_topics() if topic.startswith(self.prefix)])
        finally:
            admin.close()

    def proxy(self) -> FaultProxy:
        return FaultProxy(*self.endpoint(), at=self._server.proxy_port)

    def restart(self) -> None:
        self._server.restart()

    def denied_url(self) -> str:
        return self._server.url_of("keeper").replace("right", "wrong")

    def untrusted_url(self) -> str:
        return self._server.tls_url

    def driver(self) -> tuple[str, str]:
        return "kafka", "kafka"

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{self._server.port}"
