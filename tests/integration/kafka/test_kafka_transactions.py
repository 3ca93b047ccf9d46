"""What the driver's transactions must not do, whatever version of it is installed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from kafka.producer.transaction_manager import TransactionState
from kafka.structs import OffsetAndMetadata

from mqkit._url import Url, parse_options
from mqkit.backends.kafka.network import make_driver
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.backends.kafka.producer import BATCH, Transactions
from mqkit.backends.kafka.record import ProducerRecord, tail_of
from mqkit.errors import Lost, MessageTooLarge
from mqkit.testing.brokers import KafkaProcess
from tests.brokers.kafkas import publish
from tests.integration.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kafka"), pytest.mark.timeout(60)]


@pytest.fixture
def address(kafka: KafkaProcess) -> str:
    return f"127.0.0.1:{kafka.start().port}"


@pytest.fixture
def topic(address: str) -> str:
    """Of two partitions."""
    name = f"topic-{uuid.uuid4()}"
    admin = make_driver(KafkaAdminClient, bootstrap_servers=address)
    admin.create_topics([NewTopic(name, 2, 1)])
    admin.close()
    return name


@pytest.fixture
def transactions(kafka: KafkaProcess, topic: str) -> Iterator[Transactions]:
    url = Url.parse(kafka.url)
    transactions = Transactions(Cluster.of(url, parse_options(KafkaOptions, url)), topic)
    yield transactions
    transactions.close()


@pytest.fixture
def member(kafka: KafkaProcess, address: str, topic: str) -> Iterator[KafkaConsumer]:
    """Of a group, and has both partitions."""
    publish(kafka.url, topic, [b"here"])
    # Joining may be faster than the news of the topic; then it has no partitions until the driver asks once more.
    settings = {"auto_offset_reset": "earliest", "enable_auto_commit": False, "metadata_max_age_ms": 1000}
    with closing(make_driver(KafkaConsumer, bootstrap_servers=address, group_id=topic, **settings)) as member:
        member.subscribe([topic])
        # In one call: the driver forgets that it was joining for the sake of such news where one ends meanwhile.
        assert member.poll(30_000)
        assert len(member.assignment()) == 2
        yield member


def test_offsets_that_were_refused_are_not_committed_by_the_next_transaction(
    transactions: Transactions, member: KafkaConsumer, topic: str
) -> None:
    first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
    present = member.group_metadata()
    with pytest.raises(Lost):
        transactions.carry_out([], {first: OffsetAndMetadata(7, "", -1)}, present._replace(generation_id=99))

    transactions.carry_out([], {second: OffsetAndMetadata(9, "", -1)}, present)

    until(lambda: member.committed(second) == 9, 20.0)
    assert member.committed(first) is None


class Paced(list[ProducerRecord]):
    """Those of a transaction, of which the others are handed over when the first has been refused."""

    def __init__(self, records: list[ProducerRecord], transactions: Transactions) -> None:
        super().__init__(records)
        self._transactions = transactions

    def __iter__(self) -> Iterator[ProducerRecord]:
        for number, record in enumerate(super().__iter__()):
            manager = self._transactions._producer.driver._transaction_manager
            if number and manager._current_state == TransactionState.IN_TRANSACTION:
                until(manager.has_error, 20.0)
            yield record


def test_what_refused_a_record_is_told_although_others_are_still_handed_over(
    address: str, topic: str, transactions: Transactions
) -> None:
    small = f"{topic}-small"
    with closing(make_driver(KafkaAdminClient, bootstrap_servers=address)) as admin:
        admin.create_topics([NewTopic(small, 1, 1, topic_configs={"max.message.bytes": "1000"})])
    records = [
        ProducerRecord(small, None, bytes(5000), tail_of([]), 0),
        ProducerRecord(topic, None, b"other", tail_of([]), 0),
    ]
    assert transactions.knows(small)

    with pytest.raises(MessageTooLarge):
        transactions.carry_out(Paced(records, transactions), {}, None)


def test_a_transaction_waits_for_all_of_its_partitions(address: str, topic: str, transactions: Transactions) -> None:
    """The last record is written long before those of the other partition, whose batches go one after the other."""
    records = [ProducerRecord(topic, None, b"%06d" % number * (BATCH // 8), tail_of([]), 0) for number in range(100)]

    transactions.carry_out([*records, ProducerRecord(topic, None, b"last", tail_of([]), 1)], {}, None)

    found: list[bytes] = []
    settings = {"auto_offset_reset": "earliest", "isolation_level": "read_committed"}
    with closing(make_driver(KafkaConsumer, bootstrap_servers=address, **settings)) as reader:
        reader.subscribe([topic])

        def all_came() -> bool:
            found.extend(record.value for polled in reader.poll(100).values() for record in polled)
            return len(found) > len(records)

        until(all_came, 30.0)
    assert sorted(found) == sorted([*[record.value for record in records], b"last"])
