"""What becomes of topics of Kafka: where groups begin, what is kept and removed, and what other programs find there."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition as Partition
from kafka.admin import ConfigResource

from mqkit import Delivery, Queue, Reject, Retry, Topic, _ending, fixed
from mqkit._url import Url, parse_options
from mqkit.backends.kafka import consumer, relay, trim
from mqkit.backends.kafka.options import Cluster, KafkaOptions
from mqkit.backends.kafka.record import Record
from mqkit.errors import ConfigError, MessageTooLarge, MqkitError, PublishFailed, PublishUnknown, Unavailable
from mqkit.native import KafkaPartition, KafkaQueue, KafkaTopic
from mqkit.subscription import Subscription
from mqkit.testing.brokers import KafkaProcess
from tests.integration.processes import Consumer, Lines
from tests.integration.programs import numbers
from tests.kafka_server import KafkaHarness
from tests.unit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

words = Queue("words", str)
events = Topic("events", int)
SHORT = KafkaQueue(config={"max.message.bytes": "2000"})


def all_of(messages: Subscription[Any], least: int) -> list[Any]:
    """The payloads that come, acknowledged: at least so many, and then until none has come for a second."""
    payloads: list[Any] = []
    late = time.monotonic() + 60.0
    while (deliveries := messages.receive(max=1000, timeout=1.0)) or len(payloads) < least:
        assert time.monotonic() < late, payloads
        for delivery in deliveries:
            payloads.append(delivery.payload)
            delivery.ack()
    return payloads


class TestWhereAGroupBegins:
    def test_at_a_time_if_it_says_so(self, harness: KafkaHarness) -> None:
        publishing = harness.bus()
        publishing.publish_many(events, range(10))
        border = _a_time_between()
        publishing.publish_many(events, range(10, 20))

        late = Topic("events", int, native=KafkaTopic(starts={"late": border}))
        with harness.bus().subscription(late, group="late") as messages:
            assert sorted(all_of(messages, 10)) == list(range(10, 20))

    def test_at_offsets_if_it_says_so_and_at_the_end_of_the_other_partitions(self, harness: KafkaHarness) -> None:
        publishing = harness.bus()
        for partition in (0, 1):
            for number in range(5):
                publishing.publish(events, 10 * partition + number, native=KafkaPartition(partition))

        late = Topic("events", int, native=KafkaTopic(starts={"late": {0: 3}}))
        with harness.bus().subscription(late, group="late") as messages:
            assert sorted(all_of(messages, 2)) == [3, 4]

    def test_within_a_batch_that_is_compressed(self, harness: KafkaHarness) -> None:
        publishing = harness.bus(harness.url_with(compression="gzip"))
        publishing.publish_many(events, range(100), native=KafkaPartition(0))

        late = Topic("events", int, native=KafkaTopic(starts={"late": {0: 60}}))
        with harness.bus().subscription(late, group="late") as messages:
            assert all_of(messages, 40) == list(range(60, 100))


def test_batches_are_decoded_by_us(harness: KafkaHarness) -> None:
    """A driver that asks for that in another way would decode them itself, slowly."""
    bus = harness.bus(harness.url_with(partitions=1))
    bus.publish_many(words, ["first", "second"])
    url = Url.parse(harness.url)
    reader = consumer.Consumer(Cluster.of(url, parse_options(KafkaOptions, url)), fetch_bytes=1 << 20, group_id=None)
    place, records = Partition(harness.topic(words), 0), list[Any]()
    try:
        reader.driver.assign([place])
        reader.begin(place, 0)
        until(lambda: records.extend(reader.fetch().get(place, ())) or len(records) == 2)
    finally:
        reader.close()
    assert [type(record) for record in records] == [Record, Record]


def _a_time_between() -> float:
    """Later than what was published before, and not later than what is published afterwards: to the millisecond."""
    began = time.time()
    until(lambda: time.time() > began + 0.02)
    border = time.time()
    until(lambda: time.time() > border + 0.02)
    return border


class TestTrimming:
    def test_what_is_handled_is_removed_from_a_queue_and_from_no_topic(
        self, harness: KafkaHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(trim.Trimmer.__init__, "__defaults__", (0.1,))  # seconds, not a minute
        bus = harness.bus()
        bus.declare(Topic("events", int, groups=["only"]))
        bus.publish_many(events, range(20))
        bus.publish_many(numbers, range(100))

        with (
            bus.subscription(events, group="only", prefetch=100) as of_topic,
            bus.subscription(numbers, prefetch=100) as of_queue,
        ):
            for delivery in harness.take(of_topic, 20):
                delivery.ack()
            deliveries = harness.take(of_queue, 100)
            _acknowledge(delivery for delivery in deliveries if delivery.payload < 60)
            harness.wait(lambda: _kept(harness, numbers) == list(range(60, 100)), within=20.0)
            _acknowledge(delivery for delivery in deliveries if delivery.payload >= 60)
            harness.wait(lambda: _kept(harness, numbers) == [], within=20.0)

        assert _kept(harness, events) == list(range(20))


def _acknowledge(deliveries: Any) -> None:
    for delivery in deliveries:
        delivery.ack()


def _kept(harness: KafkaHarness, source: Any) -> list[int]:
    return sorted(int(body) for body in harness.read_native(source))


class TestLosingTopics:
    def test_one_that_is_deleted_under_a_publisher_is_told_soon_and_made_again(self, harness: KafkaHarness) -> None:
        bus = harness.bus()
        bus.publish(words, "before")

        harness.delete(words)
        began, answer = time.monotonic(), None
        try:
            bus.publish(words, "after", id="after", timeout=30.0)
        except MqkitError as error:
            answer = error
        took = time.monotonic() - began
        bus.publish(words, "after", id="after", timeout=30.0)

        assert answer is None or answer.retryable, answer
        assert took < 8.0
        assert set(harness.read_native(words)) == {b'"after"'}

    def test_one_that_is_known_to_be_gone_is_made_again(self, harness: KafkaHarness) -> None:
        bus = harness.bus()
        bus.publish(words, "before")
        harness.delete(words)
        bus.publish(numbers, 1)  # what is new is asked for, and the answer tells what is gone
        time.sleep(1.0)  # the driver asks nothing more: who has forgotten the answer by now would find it out too late

        bus.publish(words, "after")

        assert harness.read_native(words) == [b'"after"']

    def test_one_that_is_deleted_under_a_consumer_is_made_again(self, harness: KafkaHarness) -> None:
        bus, seen = harness.bus(), list[str]()
        bus.on(words)(seen.append)

        with bus.worker():
            bus.publish(words, "one")
            harness.wait(lambda: seen == ["one"], within=20.0)
            harness.delete(words)
            bus.publish(words, "two", timeout=20.0)
            harness.wait(lambda: "two" in seen, within=40.0)

        assert seen[0] == "one"

    def test_what_waits_for_one_that_is_gone_keeps_nothing_else_waiting(
        self, harness: KafkaHarness, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay, "ABSENT", 1.0)
        gone, bus, seen = Queue("gone", str), harness.bus(), list[str]()
        bus.publish(gone, "nobody", delay=1.5)
        harness.delete(gone)
        bus.on(words)(seen.append)

        with bus.worker():
            bus.publish(words, "somebody", delay=1.5)
            harness.wait(lambda: seen, within=30.0)

        assert seen == ["somebody"]

    def test_what_the_topic_refuses_when_it_is_due_waits_on_and_keeps_nothing_else_waiting(
        self, harness: KafkaHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(relay, "PUT_OFF", 2.0)
        short, bus, seen = Queue("short", str, native=SHORT), harness.bus(), list[str]()
        bus.publish(short, random.randbytes(5000).hex(), delay=1.5)
        bus.on(words)(seen.append)

        with bus.worker():
            bus.publish_many(words, ["somebody", "somebody else"], delay=1.5)
            harness.wait(lambda: len(seen) == 2 and "delayed.refused" in caplog.text, within=30.0)
            harness.wait(lambda: harness.depth(short).delayed == 1)  # not while it is put off once more
            with harness.control() as admin:
                room = {"max.message.bytes": "100000"}
                admin.alter_configs([ConfigResource("topic", harness.topic(short), configs=room)])
            harness.wait(lambda: harness.read_native(short), within=30.0)

        assert sorted(seen) == ["somebody", "somebody else"]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"mq-due": "soon", "mq-to": "nowhere"},
            {"mq-due": "nan", "mq-to": "no such name!"},
            {"mq-due": "inf", "mq-to": ".."},
            {"mq-due": "1", "mq-to": "t" * 300},
            {"mq-due": "1", "mq-to": "{words}", "mq-to-partition": "nine"},
            {"mq-due": "1", "mq-to": "{words}", "mq-to-partition": "999"},
            {"mq-due": "1", "mq-to": "{words}", "mq-to-partition": "9" * 5000},
            {"mq-due": "1", "mq-to": "{words}", "colour": None},
            {"mq-due": "nan", "mq-to": "{words}", "mq-attempt": "9" * 400, "mq-since": "inf"},
        ],
        ids=lambda headers: " ".join(map(str, headers.values()))[:30],
    )
    def test_what_others_have_put_among_it_keeps_nothing_waiting(
        self,
        harness: KafkaHarness,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        headers: dict[str, str | None],
    ) -> None:
        monkeypatch.setattr(relay, "ABSENT", 1.0)
        bus, seen = harness.bus(), list[str]()
        bus.on(words)(seen.append)

        with bus.worker():
            bus.publish(words, "before", delay=0.1)
            harness.wait(lambda: seen == ["before"], within=30.0)
            texts = {name: text and text.format(words=harness.topic(words)) for name, text in headers.items()}
            harness.write(harness.lane(0.1), b'"foreign"', texts)
            bus.publish(words, "behind it", delay=0.1)
            expected = ["behind it", *["foreign"] * (headers.get("mq-to") == "{words}")]
            harness.wait(lambda: len(seen) == 1 + len(expected), within=30.0)

        assert sorted(seen[1:]) == expected
        assert ("foreign" in seen) != any(f"delayed.{fate}" in caplog.text for fate in ("unreadable", "dropped"))


class TestRefusals:
    def test_a_message_that_a_topic_refuses_is_the_only_one_that_fails(self, harness: KafkaHarness) -> None:
        bus, short = harness.bus(), Queue("short", str, native=SHORT)

        with pytest.raises(MqkitError, match="large"):
            bus.publish(short, random.randbytes(5000).hex(), timeout=20.0)
        for _ in range(3):
            bus.publish(short, "small", timeout=20.0)

        assert harness.read_native(short) == [b'"small"'] * 3

    @pytest.mark.parametrize("ladder", ["the ladder takes it", "the ladder does not"])
    @pytest.mark.parametrize("why", ["it said so", "what it published was refused too"])
    def test_a_dead_letter_that_its_topic_refuses_waits_on_and_keeps_nothing_busy(
        self,
        harness: KafkaHarness,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        why: str,
        ladder: str,
    ) -> None:
        monkeypatch.setattr(_ending, "REFUSED_RETRY", 2.0)
        large, short = Queue("large", str), Queue("short", str, native=SHORT)
        bus, seen, begun = harness.bus(), list[int](), list[float]()

        @bus.on(large, retry=Retry(attempts=1))
        def fail(_: str, delivery: Delivery[str]) -> None:
            begun.append(time.monotonic())
            if why == "it said so":
                raise Reject("no")
            delivery.publish(short, "x" * 5000)

        bus.on(numbers)(seen.append)
        bus.declare(large, short, numbers)
        refusing = [harness.topic_of_the_dead(large), *[harness.lane(2.0)] * (ladder == "the ladder does not")]
        with harness.control() as admin:
            bus.publish(words, "the ladder is there", delay=2.0)
            admin.alter_configs(
                [ConfigResource("topic", one, configs={"max.message.bytes": "2000"}) for one in refusing]
            )
            with bus.worker(), caplog.at_level(logging.WARNING, "mqkit"):
                began = time.monotonic()
                bus.publish(large, random.randbytes(5000).hex())
                said = lambda: [one for one in caplog.records if one.message == "copies.delayed"]
                harness.wait(lambda: len(said()) >= 3, within=30.0)
                assert (
                    len(said()) <= 2 + (time.monotonic() - began) / 2.0
                )  # of the letter, of the copy that waits, each 2 s
                bus.publish_many(numbers, range(100))
                harness.wait(lambda: len(seen) == 100)
                room = {"max.message.bytes": "100000"}
                admin.alter_configs([ConfigResource("topic", one, configs=room) for one in refusing])
                harness.wait(lambda: bus.dead_letters(large).list(), within=30.0)

        assert begun
        assert bus.dead_letters(numbers).list() == []

    def test_what_a_handler_publishes_and_its_topic_refuses_is_a_failed_attempt(self, harness: KafkaHarness) -> None:
        short, bus, attempts = Queue("short", str, native=SHORT), harness.bus(), list[int]()

        @bus.on(numbers, retry=Retry(attempts=3, backoff=fixed(0.2)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            attempts.append(delivery.attempt)
            delivery.publish(short, "x" * number)

        bus.declare(short)
        with bus.worker():
            bus.publish_many(numbers, [5000, 1])
            harness.wait(lambda: bus.dead_letters(numbers).list(), within=30.0)
            harness.wait_empty(numbers)
        [letter] = bus.dead_letters(numbers).list()

        assert sorted(attempts) == [1, 1, 2, 3]
        assert letter.message.body == b"5000"
        assert "MessageTooLarge" in letter.reason
        assert harness.read_native(short) == [b'"x"']

    def test_what_others_may_write_may_die(self, harness: KafkaHarness) -> None:
        """Larger than this program publishes: its topic takes it, so its dead letters do."""
        large = Queue("large", str, native=KafkaQueue(config={"max.message.bytes": "10000000"}))
        other, bus = harness.bus(harness.url_with(max_body=9_000_000)), harness.bus()
        bus.declare(large)
        with harness.control() as admin:
            room = {"max.message.bytes": "10000000"}
            admin.alter_configs([ConfigResource("topic", harness.topic_of_the_dead(large), configs=room)])
        other.publish(large, "x" * 5_000_000, timeout=30.0)

        @bus.on(large)
        def fail(_: str) -> None:
            raise Reject("no")

        with bus.worker():
            harness.wait(lambda: bus.dead_letters(large).list(), within=30.0)
        [letter] = bus.dead_letters(large).list()

        assert letter.message.body == b'"%b"' % (b"x" * 5_000_000)

    def test_among_many_of_others_it_is_the_only_one_that_is_called_too_large(self, harness: KafkaHarness) -> None:
        """The driver gives up all that are on the way, and nobody knows what became of those."""
        short, many = Queue("short", str, native=SHORT), Queue("many", int)
        bus = harness.bus()
        bus.declare(short, many)

        before = [bus.publish_soon(many, number) for number in range(2000)]
        refused = bus.publish_soon(short, random.randbytes(5000).hex())
        after = [bus.publish_soon(many, number) for number in range(2000, 4000)]

        with pytest.raises(MessageTooLarge):
            refused.result(30.0)
        outcomes = [type(future.exception(30.0)) for future in [*before, *after]]
        written = Counter(map(int, harness.read_native(many)))
        assert set(outcomes) <= {type(None), PublishUnknown, PublishFailed}
        assert max(written.values()) == 1
        for number, outcome in enumerate(outcomes):
            assert outcome is PublishUnknown or (number in written) == (outcome is type(None))


class TestPublishing:
    def test_a_lone_message_leaves_at_once(self, harness: KafkaHarness) -> None:
        """The driver's thread would look for it by itself within a second: 20 took 17 s then, and 0.3 s as it is."""
        bus = harness.bus()
        bus.publish(words, "first")
        began = time.monotonic()
        for _ in range(20):
            bus.publish(words, "alone")
        assert time.monotonic() - began < 8.0


class TestMakingThem:
    @pytest.mark.parametrize("max_body", [20_000, 100_000])
    def test_they_take_the_batches_of_a_burst_whole(
        self, harness: KafkaHarness, caplog: pytest.LogCaptureFixture, max_body: int
    ) -> None:
        count = 2000  # several hundred kB, to one partition
        single = Queue("single", str, partitions=1)
        bus = harness.bus(harness.url_with(max_body=max_body, partitions=1))
        bus.declare(single)
        with caplog.at_level(logging.WARNING, "kafka.producer"):
            bus.publish_many(single, ["x" * 400] * count)

        assert [record.getMessage() for record in caplog.records if "splitting" in record.getMessage()] == []
        assert harness.depth(single).ready == count

    def test_they_have_the_partitions_of_the_url_unless_they_declare_more_than_one(self, harness: KafkaHarness) -> None:
        bus = harness.bus(harness.url_with(partitions=3))
        bus.declare(Queue("some", int), Queue("more", int, partitions=5))

        with harness.control() as admin:
            topics = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}

        assert topics[f"{harness.prefix}some__queue"] == 3
        assert topics[f"{harness.prefix}more__queue"] == 5

    def test_they_have_the_configuration_they_declare(self, harness: KafkaHarness) -> None:
        harness.bus().declare(
            Queue("some", int, native=KafkaQueue(config={"segment.ms": "600000"})),
            Topic("events", int, native=KafkaTopic(retain=90.0, config={"segment.ms": "700000"})),
        )

        queue, topic = _configured(harness, "some__queue"), _configured(harness, "events")
        assert (queue["segment.ms"], queue["retention.ms"]) == ("600000", "-1")
        assert (topic["segment.ms"], topic["retention.ms"]) == ("700000", "90000")

    def test_more_copies_than_there_are_brokers_are_refused(self, harness: KafkaHarness) -> None:
        with pytest.raises(ConfigError, match="replication"):
            harness.bus(harness.url_with(replication=3)).declare(words)

    def test_a_name_that_kafka_takes_for_another_one_is_refused(self, harness: KafkaHarness) -> None:
        bus = harness.bus()
        bus.declare(Queue("a.b", int))

        with pytest.raises(ConfigError, match=r"differs in \. and _ only"):
            bus.declare(Queue("a_b", int))

    def test_they_take_as_large_a_message_as_the_url_says(self, harness: KafkaHarness) -> None:
        bus, large = harness.bus(harness.url_with(max_body=4 << 20)), "x" * ((4 << 20) - 5000)
        bus.publish(words, large, timeout=20.0)

        with bus.subscription(words) as messages:
            assert all_of(messages, 1) == [large]

    def test_what_is_compressed_takes_little_room_there(self, harness: KafkaHarness, kafka: KafkaProcess) -> None:
        bus = harness.bus(harness.url_with(compression="gzip", partitions=1))
        bus.publish(words, "x" * 500_000)

        log = kafka.folder / "data" / f"{harness.prefix}words__queue-0"
        assert sum(map(_size, log.glob("*.log"))) < 10_000
        with bus.subscription(words) as messages:
            assert all_of(messages, 1) == ["x" * 500_000]


def _configured(harness: KafkaHarness, name: str) -> dict[str, str]:
    topic = harness.prefix + name
    with harness.control() as admin:
        found = admin.describe_configs([ConfigResource("topic", topic)])
    return {key: value["value"] for key, value in found["topic"][topic].items()}


def _size(path: Path) -> int:
    return path.stat().st_size


class TestOtherPrograms:
    def test_they_find_bodies_keys_and_headers_where_the_documentation_says(self, harness: KafkaHarness) -> None:
        emails, orders = Queue("emails", str), Topic("orders", str, key=lambda order: order, groups=["billing"])
        bus, at = harness.bus(), harness.prefix
        bus.declare(emails, orders)
        bus.publish(emails, "Hello", headers={"trace": "1"})
        bus.publish(orders, "A-7")

        [email], [order] = harness.records(f"{at}emails__queue"), harness.records(f"{at}orders")
        with harness.control() as admin:
            topics = {topic["name"].removeprefix(at) for topic in admin.describe_topics()}
            groups = {group["group_id"] for group in admin.list_groups()}

        assert (email.value, order.value, order.key) == (b'"Hello"', b'"A-7"', b"A-7")
        assert ("trace", b"1") in email.headers
        assert all(name.startswith("mq-") for name, _ in email.headers if name != "trace")
        assert topics >= {"orders", "orders__retry.billing", "orders__dead.billing", "emails__queue"}
        assert f"{at}orders/billing" in groups
        assert _configured(harness, "orders__dead.billing")["cleanup.policy"] == "compact"


class TestConsuming:
    def test_any_consumer_of_the_prefix_moves_what_is_delayed(self, harness: KafkaHarness) -> None:
        publishing, other = harness.bus(), harness.bus()
        publishing.publish(words, "later", delay=0.3)
        before = harness.read_native(words)

        with other.subscription(numbers):
            harness.wait(lambda: harness.read_native(words) == [b'"later"'], within=20.0)

        assert before == []

    def test_one_message_that_is_never_done_stops_its_partition_after_ten_windows(self, harness: KafkaHarness) -> None:
        bus, count, window = harness.bus(harness.url_with(partitions=1)), 200, 5
        bus.publish_many(numbers, range(count))

        with bus.subscription(numbers, prefetch=window) as messages:
            [stuck] = harness.take(messages, 1)
            before = all_of(messages, 10 * window - window)
            stuck.ack()
            after = all_of(messages, count - 1 - len(before))

        assert stuck.payload == 0
        assert 10 * window - window <= len(before) <= 10 * window
        assert before + after == list(range(1, count))

    def test_a_group_cannot_be_purged_while_it_is_consumed(self, harness: KafkaHarness) -> None:
        bus = harness.bus()
        with bus.subscription(events, group="all", start="earliest") as messages:
            bus.publish(events, 1)
            [delivery] = harness.take(messages, 1)
            delivery.ack()
            bus.publish(events, 2)

            with pytest.raises(Unavailable, match="while it is consumed"):
                harness.purge(events, "all")
            assert all_of(messages, 1) == [2]

    def test_a_named_instance_that_was_killed_has_its_partitions_back_at_once(
        self, harness: KafkaHarness, lines: Lines
    ) -> None:
        url = harness.url_with(lease=30, instance="one")
        harness.bus().publish(numbers, 1)
        consumers = [Consumer(lines, "consume", url)]
        try:
            until(lambda: lines == ["1"])
            harness.wait_empty(numbers)
            consumers.pop().kill()
            killed = time.monotonic()
            harness.bus().publish(numbers, 2)
            consumers.append(Consumer(lines, "consume", url))
            until(lambda: lines == ["1", "2"])
            took = time.monotonic() - killed
        finally:
            for consumer in consumers:
                consumer.kill()

        assert took < 25.0  # the lease is not over
