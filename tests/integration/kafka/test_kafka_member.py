"""What a member of a consumer group believes, and what it writes down."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from mqkit._url import Url, parse_options
from mqkit.backends.kafka import consumer, standstill
from mqkit.backends.kafka.ledger import Position
from mqkit.backends.kafka.member import Change, Member
from mqkit.backends.kafka.network import make_driver
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.errors import Lost
from mqkit.testing.brokers import KafkaProcess
from mqkit.testing.chaos import FaultProxy
from tests.integration.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("kafka"), pytest.mark.timeout(60)]


@pytest.fixture
def partition(kafka: KafkaProcess) -> TopicPartition:
    """The only one of its topic."""
    name = f"topic-{uuid.uuid4()}"
    admin = make_driver(KafkaAdminClient, bootstrap_servers=f"127.0.0.1:{kafka.start().port}")
    admin.create_topics([NewTopic(name, 1, 1)])
    admin.close()
    return TopicPartition(name, 0)


@pytest.fixture
def proxy(kafka: KafkaProcess) -> Iterator[FaultProxy]:
    """In front of the cluster, which tells its clients to come this way."""
    with FaultProxy("127.0.0.1", kafka.start().proxied_port, at=kafka.proxy_port) as proxy:
        yield proxy


@pytest.fixture
def member(kafka: KafkaProcess, proxy: FaultProxy, partition: TopicPartition) -> Iterator[Member]:
    """The only one of its group."""
    url = Url.parse(proxy.through(kafka.url))
    cluster = Cluster.of(url, parse_options(KafkaOptions, url))
    with closing(Member(cluster, partition.topic, [partition.topic], grace=5.0, fetch_bytes=1 << 20)) as member:
        member.join(30.0)
        assert [change.kind for change in member.heard()] == ["assigned"]
        yield member


def left_off(member: Member, partition: TopicPartition) -> Position | None:
    """What it is told."""
    answers: list[Mapping[TopicPartition, Position | None]] = []

    def answered() -> bool:
        if (answer := member.committed([partition])) is not None:
            answers.append(answer)
        return bool(answers)

    until(answered, 20.0)
    return answers[0][partition]


def test_where_others_left_off_is_asked_anew_for_what_has_left_and_comes_back(
    member: Member, partition: TopicPartition
) -> None:
    assert member.committed([partition]) is None  # asked for
    member.commit({partition: Position(7, "")}, 10.0)  # as others do who have it meanwhile
    member.let_go(member.leaving)

    assert left_off(member, partition) == Position(7, "")


def test_what_is_leaving_now_is_not_let_go_by_who_was_too_slow_before(
    member: Member, partition: TopicPartition
) -> None:
    member.gone.clear()
    member.leaving = {partition}

    member.let_go({partition})
    assert not member.gone.is_set()

    member.let_go(member.leaving)
    assert member.gone.is_set()


def test_nothing_is_committed_of_what_may_be_others_by_now(member: Member, partition: TopicPartition) -> None:
    member.commit({partition: Position(7, "")}, 10.0)
    member.changes.append(Change("left_out", frozenset([partition])))

    with pytest.raises(Lost):
        member.commit({partition: Position(8, "")}, 10.0)
    member.commit_soon({partition: Position(9, "")})
    member.finish_commit(10.0)
    ended = member.commit_ended()
    assert ended is not None
    assert ended.failure is not None

    member.heard()
    assert left_off(member, partition) == Position(7, "")


def test_a_leader_whose_assignment_does_not_arrive_joins_again(
    kafka: KafkaProcess, member: Member, partition: TopicPartition, proxy: FaultProxy
) -> None:
    """It has joined for the sake of new partitions; a group that has changed itself would call it once more."""
    coordinator = member.driver._coordinator
    assign, lost = coordinator._perform_assignment, []

    def assign_into_nowhere(*arguments: Any) -> Any:
        assigned = assign(*arguments)
        if not lost:
            lost.append(assigned)
            proxy.reset()
        return assigned

    coordinator._perform_assignment = assign_into_nowhere
    with closing(make_driver(KafkaAdminClient, bootstrap_servers=f"127.0.0.1:{kafka.port}")) as admin:
        admin.create_partitions({partition.topic: 3})
    until(lambda: len(member.learn([partition.topic])[partition.topic]) == 3, 20.0)

    def has_all() -> bool:
        member.join(1.0)
        return member.at_rest and len(member.driver.assignment()) == 3

    until(has_all, 20.0)
    assert lost


def test_who_has_stopped_to_tell_the_group_that_it_is_there_joins_again(member: Member) -> None:
    generation = member.metadata.generation_id
    member.driver._net.run(member.driver._coordinator._disable_heartbeat)
    assert not member.at_rest

    def joined_again() -> bool:
        member.join(1.0)
        return member.at_rest and member.metadata.generation_id > generation

    until(joined_again, 20.0)


def test_a_doubt_ends_where_heartbeats_take_longer_than_the_time_between_them(
    member: Member, proxy: FaultProxy
) -> None:
    proxy.slow(delay=0.3)  # each way; they are half a second apart
    member.doubt()

    def certain() -> bool:
        member.step()
        return not member.doubtful

    until(certain, 20.0)


def test_what_a_transaction_hides_that_does_not_end_is_told_of(
    kafka: KafkaProcess,
    member: Member,
    partition: TopicPartition,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(consumer, "LOOK", 0.2)
    monkeypatch.setattr(standstill, "LONGEST", 1.0)
    member.begin(partition, 0)
    settings = {"bootstrap_servers": f"127.0.0.1:{kafka.port}", "transactional_id": partition.topic}
    with closing(make_driver(KafkaProducer, **settings)) as other:
        other.init_transactions()
        other.begin_transaction()
        for number in range(3):
            other.send(partition.topic, b"%d" % number).get(timeout=10.0)

        def told_of() -> list[tuple[Any, ...]]:
            member.step()
            assert member.fetch(0.1) == {}
            said = (vars(record) for record in caplog.records if record.message == "partition.held_up")
            return [tuple(one[name] for name in ("topic", "partition", "offset", "behind")) for one in said]

        until(lambda: (partition.topic, 0, 0, 3) in told_of(), 20.0)
        other.abort_transaction()
