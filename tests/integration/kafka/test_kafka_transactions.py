"""What the driver's transactions must not do, whatever version of it is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import NewTopic
from kafka.structs import OffsetAndMetadata

from mqkit._url import Url, parse_options
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.backends.kafka.producer import Transactions
from mqkit.errors import Lost
from mqkit.testing.brokers import KafkaProcess
from tests.integration.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kafka"), pytest.mark.timeout(60)]

TOPIC = "refused-offsets"


@pytest.fixture
def transactions(kafka: KafkaProcess, member: KafkaConsumer) -> Iterator[Transactions]:
    url = Url.parse(kafka.url)
    transactions = Transactions(Cluster.of(url, parse_options(KafkaOptions, url)), TOPIC)
    yield transactions
    transactions.close()


@pytest.fixture
def member(kafka: KafkaProcess) -> Iterator[KafkaConsumer]:
    """Of a group, and has two partitions."""
    address = f"127.0.0.1:{kafka.start().port}"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics([NewTopic(TOPIC, 2, 1)])
    admin.close()
    # Joining may be faster than the news of the topic; then it has no partitions until the driver asks once more.
    member = KafkaConsumer(
        TOPIC, bootstrap_servers=address, group_id=TOPIC, enable_auto_commit=False, metadata_max_age_ms=1000
    )
    until(lambda: member.poll(100) or len(member.assignment()) == 2, 60.0)
    yield member
    member.close()


def test_offsets_that_were_refused_are_not_committed_by_the_next_transaction(
    transactions: Transactions, member: KafkaConsumer
) -> None:
    first, second = TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)
    present = member.group_metadata()
    with pytest.raises(Lost):
        transactions.carry_out([], {first: OffsetAndMetadata(7, "", -1)}, present._replace(generation_id=99))

    transactions.carry_out([], {second: OffsetAndMetadata(9, "", -1)}, present)

    until(lambda: member.committed(second) == 9, 20.0)
    assert member.committed(first) is None
