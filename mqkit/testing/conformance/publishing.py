"""B: what is published arrives, as it was published, where it was sent, or its sender is told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from mqkit import (
    Delivery,
    Message,
    PublishFailed,
    PublishUnknown,
    Queue,
    Reject,
    Retry,
    TimedOut,
    Topic,
    fixed,
)
from mqkit.backends.base import Outgoing
from mqkit.codecs import MSGPACK, RAW, TEXT
from mqkit.errors import MessageTooLarge, MqkitError, NotFound, Unencodable
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import drain
from mqkit.testing.conformance.faults import accept
from mqkit.testing.conformance.harness import Harness

RESERVE = 4096  # bytes that a publish leaves free for the diagnosis of a dead letter

LIKE_AN_ENVELOPE = (
    b'{"id": "x", "body": "y", "headers": {"mq-attempt": "7"}, "properties": {"delivery_tag": 1}, '
    b'"Message": "inner", "MessageAttributes": {"a": {"Type": "String", "Value": "b"}}, "payload": null, "key": "k"}'
)

STRANGE_HEADERS = {
    "dotted.name": "a.b.c",
    "slash/ed": "a/b",
    "with space": " edges kept ",
    "quo\"te'd": "\"double\" and 'single' and \\ back",
    "colon:equals=": "semi;colon, comma",
    "UPPER": "upper",
    "upper": "lower",
    "größe": "Ünïcödé",
    "絵文字": "🎉🎊",
    "control": "\x01\x02\x1f\x7f",
    "lines": "one\ntwo\r\nthree\ttabbed",
    "empty": "",
    "number": "007",
    "long": "x" * 3000,
}


@dataclass(frozen=True)
class Ordered:
    number: int


class TestPublishing:
    """B. Publish and receive."""

    @case("B.01")
    def test_messages_published_before_any_consumer_arrive_with_id_body_and_headers(self, harness: Harness) -> None:
        numbers, sender, reader = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        sent = {sender.publish(numbers, n, headers={"number": str(n)}): n for n in range(100)}

        with reader.subscription(numbers, prefetch=100) as messages:
            found = harness.take(messages, 100)

        assert {one.id: one.payload for one in found} == sent
        assert {one.id: one.message.body for one in found} == {id: str(n).encode() for id, n in sent.items()}
        assert {one.id: one.headers for one in found} == {id: {"number": str(n)} for id, n in sent.items()}

    @case("B.02")
    def test_an_id_is_unique_and_stays_the_same_when_its_message_comes_again(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[tuple[int, str]] = []

        @bus.on(numbers, retry=Retry(attempts=3, backoff=fixed(0.01)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            seen.append((number, delivery.id))
            if delivery.attempt < 3:
                raise ConnectionError("again")

        ids = [bus.publish(numbers, number) for number in range(20)]
        own = bus.publish(numbers, 20, id="an id of the sender's own")
        drain(harness, bus)

        assert all(ids)
        assert len(set(ids)) == 20
        assert own == "an id of the sender's own"
        assert Counter(seen) == Counter(dict.fromkeys(enumerate([*ids, own]), 3))

    @pytest.mark.slow
    @case("B.03")
    def test_fifty_publishers_and_fifty_consumers_lose_nothing_and_repeat_nothing(self, harness: Harness) -> None:
        numbers, buses = Queue(harness.unique("numbers"), int), [harness.bus() for _ in range(50)]
        seen: list[int] = []
        for bus in buses:
            bus.on(numbers, concurrency=1)(seen.append)

        def publish(publisher: int) -> None:
            for number in range(100):
                buses[publisher].publish(numbers, publisher * 100 + number, timeout=60.0)

        with ExitStack() as consumers:
            for bus in buses:
                consumers.enter_context(bus.worker())
            at_once(50, publish)
            harness.wait_empty(numbers, within=120.0)

        assert Counter(seen) == Counter(range(5000))

    @case("B.04")
    def test_twenty_topics_are_used_at_once(self, harness: Harness) -> None:
        topics, bus = [Topic(harness.unique("topic"), int, groups=["all"]) for _ in range(20)], harness.bus()
        seen: list[list[int]] = [[] for _ in topics]
        for topic, found in zip(topics, seen, strict=True):
            bus.on(topic, group="all", concurrency=1)(found.append)

        def publish(place: int) -> None:
            for number in range(20):
                bus.publish(topics[place], place * 100 + number, timeout=60.0)

        with bus.worker():
            at_once(20, publish)
            for topic in topics:
                harness.wait_empty(topic, "all", within=30.0)

        assert [sorted(found) for found in seen] == [list(range(p * 100, p * 100 + 20)) for p in range(20)]

    @case("B.05")
    def test_destinations_with_similar_names_never_meet(self, harness: Harness) -> None:
        stem, on_queues, on_topics = harness.unique("orders"), harness.bus(), harness.bus()
        queues = [Queue(name, str) for name in (stem, f"{stem}.billing", f"{stem}-billing", stem.upper())]
        topic = Topic(stem, str, groups=["billing"])

        on_topics.publish(topic, "topic")
        for queue in queues:
            on_queues.publish(queue, queue.name)

        found: list[list[str]] = []
        for queue in queues:
            with on_queues.subscription(queue) as messages:
                found.append([one.payload for one in harness.take_only(messages, 1)])
        with on_topics.subscription(topic, group="billing") as messages:
            found.append([one.payload for one in harness.take_only(messages, 1)])
        assert found == [[queue.name] for queue in queues] + [["topic"]]

    @case("B.06")
    def test_two_handlers_of_one_bus_get_each_what_is_theirs(self, harness: Harness) -> None:
        orders, refunds = Topic(harness.unique("orders"), int), Topic(harness.unique("refunds"), int)
        bus = harness.bus()
        ordered: list[int] = []
        refunded: list[int] = []
        bus.on(orders, group="billing")(ordered.append)
        bus.on(refunds, group="billing")(refunded.append)

        with bus.worker():
            for number in range(50):
                bus.publish(orders, number)
                bus.publish(refunds, -number)
            harness.wait_empty(orders, "billing")
            harness.wait_empty(refunds, "billing")

        assert sorted(ordered) == list(range(50))
        assert sorted(refunded) == list(range(-49, 1))

    @case("B.07")
    def test_a_queue_keeps_what_nobody_takes_and_a_topic_gives_it_to_later_groups_never(self, harness: Harness) -> None:
        words, orders, bus = Queue(harness.unique("words"), str), Topic(harness.unique("orders"), str), harness.bus()
        bus.publish(words, "kept")
        bus.publish(orders, "nobody is there")

        with bus.subscription(words) as kept, bus.subscription(orders, group="late") as late:
            bus.publish(orders, "somebody is there")
            [from_queue] = harness.take(kept, 1)
            from_topic = harness.take_only(late, 1)

        assert from_queue.payload == "kept"
        assert [one.payload for one in from_topic] == ["somebody is there"]

    @case("B.08")
    def test_an_empty_body_a_zero_byte_and_null_are_three_things_and_none_is_no_body(self, harness: Harness) -> None:
        raw, json = Queue(harness.unique("raw"), bytes, codec=RAW), Queue(harness.unique("json"))
        bus = harness.bus()

        bus.publish(raw, b"")
        bus.publish(raw, b"\0")
        bus.publish(json, None)
        with pytest.raises(Unencodable):
            bus.publish(raw, None)  # type: ignore[misc]

        with bus.subscription(raw) as bodies, bus.subscription(json) as values:
            assert {one.payload for one in harness.take(bodies, 2)} == {b"", b"\0"}
            [value] = harness.take(values, 1)
            assert (value.payload, value.message.body) == (None, b"null")

    @case("B.09")
    def test_every_byte_arrives_as_it_was(self, harness: Harness) -> None:
        raw, bus = Queue(harness.unique("raw"), bytes, codec=RAW), harness.bus()
        body = bytes(range(256)) + bytes(reversed(range(256)))

        bus.publish(raw, body)

        with bus.subscription(raw) as messages:
            [delivery] = harness.take(messages, 1)
        assert delivery.payload == delivery.message.body == body

    @case("B.10")
    def test_a_body_that_looks_like_an_envelope_is_only_a_body(self, harness: Harness) -> None:
        raw, bus = Queue(harness.unique("raw"), bytes, codec=RAW), harness.bus()

        id = bus.publish(raw, LIKE_AN_ENVELOPE)

        with bus.subscription(raw) as messages:
            [delivery] = harness.take(messages, 1)
        assert (delivery.id, delivery.payload, delivery.attempt) == (id, LIKE_AN_ENVELOPE, 1)
        assert delivery.headers == {}

    @case("B.11")
    def test_the_largest_message_passes_even_as_a_dead_letter_and_one_byte_more_is_refused(
        self, harness: Harness
    ) -> None:
        raw, bus = Queue(harness.unique("raw"), bytes, codec=RAW), harness.bus()
        largest = harness.capabilities.max_body - RESERVE
        sizes: list[int] = []

        @bus.on(raw)
        def handle(body: bytes) -> None:
            sizes.append(len(body))
            raise Reject("no room " * 500)

        bus.publish(raw, bytes(largest), timeout=60.0)
        with pytest.raises(MessageTooLarge):
            bus.publish(raw, bytes(largest + 1))
        drain(harness, bus)

        assert sizes == [largest]
        [dead] = bus.dead_letters(raw).list()
        assert len(dead.message.body) == largest
        assert dead.reason.startswith("no room")

    @case("B.12")
    def test_header_names_and_values_of_any_text_arrive_as_they_were(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()

        bus.publish(words, "one", headers=STRANGE_HEADERS)

        with bus.subscription(words) as messages:
            [delivery] = harness.take(messages, 1)
        assert delivery.headers == STRANGE_HEADERS

    @case("B.13")
    def test_a_hundred_headers_arrive(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        headers = {f"header-{number}": f"value {number}" for number in range(100)}

        bus.publish(words, "one", headers=headers)

        with bus.subscription(words) as messages:
            [delivery] = harness.take(messages, 1)
        assert delivery.headers == headers

    @case("B.14")
    def test_a_header_that_cannot_travel_is_refused_and_nothing_is_sent(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        wrong: list[Any] = [
            {"number": 5},
            {"bytes": b"x"},
            {"none": None},
            {7: "x"},
            {"surrogate": "\ud800"},
            {"\udfff": "x"},
            {"nul": "a\0b"},
            {"": "x"},
            {"mq-attempt": "9"},
            {"MQ-Type": "x"},
        ]

        for headers in wrong:
            with pytest.raises(Unencodable):
                bus.publish(words, "wrong", headers=headers)
        bus.publish(words, "right")

        with bus.subscription(words) as messages:
            assert [one.payload for one in harness.take_only(messages, 1)] == ["right"]

    @case("B.15")
    def test_headers_of_the_framework_stay_out_of_the_users_also_when_forwarded(self, harness: Harness) -> None:
        first, second, bus = Queue(harness.unique("first"), str), Queue(harness.unique("second"), str), harness.bus()
        headers = {"colour": "red"}

        @bus.on(first, retry=Retry(attempts=2, backoff=fixed(0.01)))
        def handle(word: str, delivery: Delivery[str]) -> None:
            if delivery.attempt == 1:
                raise ConnectionError("again")
            bus.forward(second, delivery.message)

        id = bus.publish(first, "one", headers=headers, key="k")
        with bus.worker(only=[first]):
            harness.wait_empty(first)

        with bus.subscription(second) as messages:
            [delivery] = harness.take(messages, 1)
        assert (delivery.id, delivery.key, delivery.headers, delivery.payload) == (id, "k", headers, "one")
        assert delivery.attempt == 1

    @case("B.16")
    def test_each_message_says_what_type_it_is_and_how_it_is_encoded(self, harness: Harness) -> None:
        queues: list[tuple[Queue[Any], Any]] = [
            (Queue(harness.unique("json"), Ordered), Ordered(1)),
            (Queue(harness.unique("msgpack"), Ordered, codec=MSGPACK), Ordered(2)),
            (Queue(harness.unique("raw"), bytes, codec=RAW), b"3"),
            (Queue(harness.unique("text"), str, codec=TEXT), "4"),
        ]
        bus = harness.bus()
        for queue, payload in queues:
            bus.publish(queue, payload)

        said: list[tuple[str, str]] = []
        for queue, payload in queues:
            with bus.subscription(queue) as messages:
                [delivery] = harness.take(messages, 1)
                assert delivery.payload == payload
                said.append((delivery.message.type, delivery.message.content_type))

        assert said == [
            ("Ordered", "application/json"),
            ("Ordered", "application/msgpack"),
            ("", "application/octet-stream"),
            ("", "text/plain; charset=utf-8"),
        ]

    @case("B.17")
    def test_cause_and_correlation_are_stamped_on_every_path(self, harness: Harness) -> None:
        stem, bus = harness.unique("words"), harness.bus()
        root, first, sent, staged, late = (
            Queue(f"{stem}-{name}", str) for name in ("root", "1", "sent", "dead", "late")
        )
        found: dict[str, Message] = {}

        @bus.on(root)
        def begin(word: str, delivery: Delivery[str]) -> None:
            found["root"] = delivery.message
            delivery.publish(first, word)

        @bus.on(first)
        def go_on(word: str, delivery: Delivery[str]) -> None:
            found["first"] = delivery.message
            bus.publish(sent, word)
            delivery.publish(staged, word)
            delivery.publish(late, word, delay=0.05)

        @bus.on(sent, retry=Retry(attempts=2, backoff=fixed(0.01)))
        def try_twice(word: str, delivery: Delivery[str]) -> None:
            found["retried"] = delivery.message
            if delivery.attempt == 1:
                raise ConnectionError("again")

        @bus.on(staged)
        def reject(word: str) -> None:
            raise Reject("for the test")

        @bus.on(late)
        def end(word: str, delivery: Delivery[str]) -> None:
            found["delayed"] = delivery.message

        bus.publish(root, "one")
        drain(harness, bus)
        [dead] = bus.dead_letters(staged).list()
        found["dead"] = dead.message

        begun, middle = found.pop("root"), found.pop("first")
        assert (begun.causation_id, begun.correlation_id) == ("", "")
        assert (middle.causation_id, middle.correlation_id) == (begun.id, begun.id)
        assert set(found) == {"retried", "dead", "delayed"}
        assert {(one.causation_id, one.correlation_id) for one in found.values()} == {(middle.id, begun.id)}
        assert 0 < begun.sent_at <= middle.sent_at <= min(one.sent_at for one in found.values())

    @case("B.18", needs=("inject",))
    def test_a_message_of_a_foreign_client_is_consumed(self, harness: Harness) -> None:
        raw, json, bus = (
            Queue(harness.unique("raw"), bytes, codec=RAW),
            Queue(harness.unique("j"), Ordered),
            harness.bus(),
        )
        bus.declare(raw, json)
        body = harness.foreign_body

        with bus.subscription(raw) as bodies, bus.subscription(json) as orders:
            harness.inject(raw, body, {"colour": "red"})
            harness.inject(json, b'{"number": 7}', {})
            [delivery] = harness.take(bodies, 1)
            [order] = harness.take(orders, 1)
            delivery.ack()
            order.reject("for the test")
            harness.wait_empty(raw)
            harness.wait_empty(json)

        assert (delivery.payload, delivery.attempt, delivery.headers) == (body, 1, {"colour": "red"})
        assert delivery.id
        assert order.payload == Ordered(7)
        assert [dead.message.body for dead in bus.dead_letters(json).list()] == [b'{"number": 7}']

    @case("B.19", needs=("read_native",))
    def test_a_native_client_reads_the_body_as_it_was_published(self, harness: Harness) -> None:
        raw, json, bus = (
            Queue(harness.unique("raw"), bytes, codec=RAW),
            Queue(harness.unique("j"), Ordered),
            harness.bus(),
        )

        for body in (bytes(range(256)), b"", b"\0"):
            bus.publish(raw, body, headers={"colour": "red"}, key="k")
        bus.publish(json, Ordered(7))

        assert harness.read_native(raw) == [bytes(range(256)), b"", b"\0"]
        assert harness.read_native(json) == [b'{"number":7}']

    @case("B.20")
    def test_a_batch_answers_for_each_message_and_sends_none_if_one_is_wrong(self, harness: Harness) -> None:
        numbers, missing = Queue(harness.unique("numbers"), int), Queue(harness.unique("missing"), int)
        bus, careful = harness.bus(), harness.bus(declare="never")

        ids = bus.publish_many(numbers, range(10))
        refused = careful.publish_many(missing, range(10))
        with pytest.raises(Unencodable):
            bus.publish_many(numbers, [10, 11, "twelve"])  # type: ignore[misc]

        assert all(isinstance(outcome, PublishFailed) for outcome in refused)
        assert len(refused) == 10
        with bus.subscription(numbers, prefetch=20) as messages:
            found = harness.take(messages, 10)
            assert {one.id: one.payload for one in found} == dict(zip(ids, range(10), strict=True))
            assert messages.receive(timeout=0.1) == []

    @case("B.20")
    def test_a_batch_of_which_the_broker_refuses_some_says_which_and_sends_the_others_once(
        self, harness: Harness
    ) -> None:
        numbers = Queue(harness.unique("numbers"), int)
        bus, faults = harness.faulty_bus()
        faults.publish = refusing(lambda number: number % 4 == 1)

        outcomes = bus.publish_many(numbers, range(40))
        faults.publish = accept
        bus.flush()

        refused = {number for number, outcome in enumerate(outcomes) if isinstance(outcome, PublishFailed)}
        assert refused == set(range(1, 40, 4))
        with bus.subscription(numbers, prefetch=50) as messages:
            found = take_all(harness, messages, numbers)
        assert sorted((one.payload, one.id) for one in found) == [
            (number, outcome) for number, outcome in enumerate(outcomes) if number not in refused
        ]

    @case("B.21")
    def test_a_batch_of_any_count_and_size_is_sent(self, harness: Harness) -> None:
        numbers, raw = Queue(harness.unique("numbers"), int), Queue(harness.unique("raw"), bytes, codec=RAW)
        bus = harness.bus()
        large = min(256 * 1024, harness.capabilities.max_body - RESERVE)
        seen: list[int] = []
        sizes: list[int] = []
        bus.on(numbers)(seen.append)

        @bus.on(raw)
        def measure(body: bytes) -> None:
            sizes.append(len(body))

        many = bus.publish_many(numbers, range(3000))
        heavy = bus.publish_many(raw, [bytes(large)] * 50)
        drain(harness, bus)

        assert len(set(many)) == 3000
        assert len(set(heavy)) == 50
        assert Counter(seen) == Counter(range(3000))
        assert sizes == [large] * 50

    @case("B.22")
    def test_a_publish_that_the_broker_refuses_raises_whichever_way_it_was_sent(self, harness: Harness) -> None:
        missing, bus = Queue(harness.unique("missing"), str), harness.bus(declare="never")

        with pytest.raises(NotFound):
            bus.publish(missing, "no")
        with pytest.raises(NotFound):
            asyncio.run(bus.aio.publish(missing, "no"))
        future = bus.publish_soon(missing, "no")
        with pytest.raises(NotFound):
            bus.flush()

        assert isinstance(future.exception(), NotFound)
        bus.flush()  # what failed is told once

    @pytest.mark.parametrize("answer", [PublishFailed, PublishUnknown])
    @case("B.22")
    def test_a_publish_that_the_broker_does_not_confirm_raises_whichever_way_it_was_sent(
        self, harness: Harness, answer: type[PublishFailed]
    ) -> None:
        numbers = Queue(harness.unique("numbers"), int)
        bus, faults = harness.faulty_bus()
        message = Message(id="one of another system", body=b"4", content_type="application/json")
        faults.publish = refusing(lambda number: number < 10, answer)

        ways: list[Callable[[], object]] = [
            lambda: bus.publish(numbers, 1),
            lambda: asyncio.run(bus.aio.publish(numbers, 2)),
            lambda: bus.publish_soon(numbers, 3).result(10.0),
            lambda: bus.forward(numbers, message),
        ]
        for send in ways:
            with pytest.raises(answer, match="the word of the broker"):
                send()
        with pytest.raises(answer, match="the word of the broker"):
            bus.flush()  # what publish_soon sent and nobody may have asked for
        [first, second] = bus.publish_many(numbers, [5, 10])

        assert type(first) is answer
        assert isinstance(second, str)
        with bus.subscription(numbers) as messages:
            assert [one.payload for one in take_all(harness, messages, numbers)] == [10]

    @case("B.23")
    def test_a_publish_whose_time_is_over_says_truly_whether_it_was_sent(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        bus.declare(numbers)
        fates: dict[int, str] = {}

        for number in range(300):
            try:
                bus.publish(numbers, number, timeout=number % 3 * 0.0001)
                fates[number] = "sent"
            except TimedOut:
                fates[number] = "withdrawn"
            except PublishUnknown:
                fates[number] = "unknown"
        bus.publish(numbers, 300)
        fates[300] = "sent"

        with bus.subscription(numbers, prefetch=400) as messages:
            found = Counter(one.payload for one in take_all(harness, messages, numbers))
        assert {number for number, fate in fates.items() if fate == "sent"} <= set(found)
        assert not {number for number, fate in fates.items() if fate == "withdrawn"} & set(found)
        assert set(found.values()) == {1}

    @case("B.23", needs=("outage",))
    def test_a_publish_in_an_outage_ends_in_its_time_and_says_truly_whether_it_was_sent(self, harness: Harness) -> None:
        numbers, bus, other = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        bus.publish(numbers, 0)
        fates: dict[int, type[BaseException]] = {}

        with harness.outage():
            began = time.monotonic()
            for number in (1, 2, 3):
                try:
                    bus.publish(numbers, number, timeout=0.5)
                except (TimedOut, PublishFailed) as exc:
                    fates[number] = type(exc)
            took = time.monotonic() - began
        bus.publish(numbers, 4, timeout=30.0)
        with other.subscription(numbers, prefetch=10) as messages:
            found = Counter(one.payload for one in take_all(harness, messages, numbers))

        assert took < 3 * 0.5 + 1.0 * harness.scale
        assert set(fates) == {1, 2, 3}
        certain = {number for number, fate in fates.items() if fate is not PublishUnknown}  # said not to be sent
        assert {0, 4} <= set(found) <= {0, 1, 2, 3, 4} - certain
        assert set(found.values()) == {1}

    @case("B.24")
    def test_each_message_says_where_its_system_has_it(self, harness: Harness) -> None:
        words, orders = Queue(harness.unique("words"), str), Topic(harness.unique("orders"), str, groups=["billing"])
        bus = harness.bus()
        for number in range(5):
            bus.publish(words, str(number))
            bus.publish(orders, str(number))

        with bus.subscription(words) as queue, bus.subscription(orders, group="billing") as group:
            natives = [[one.message.native for one in harness.take(source, 5)] for source in (queue, group)]

        for places in natives:
            assert None not in places
            assert len(set(map(repr, places))) == 5

    @case("B.25", needs=("in_order",))
    def test_one_bus_publishes_for_threads_and_tasks_at_once_and_keeps_the_order_of_each(
        self, harness: Harness
    ) -> None:
        pairs, bus = Queue(harness.unique("pairs"), tuple[str, int]), harness.bus()

        def in_thread(place: int) -> None:
            for number in range(50):
                if number % 2:
                    bus.publish_soon(pairs, (f"thread {place}", number))
                else:
                    bus.publish(pairs, (f"thread {place}", number))

        async def in_task(place: int) -> None:
            for number in range(50):
                await bus.aio.publish(pairs, (f"task {place}", number))

        async def tasks() -> None:
            await asyncio.gather(*(in_task(place) for place in range(6)))

        loop = threading.Thread(target=lambda: asyncio.run(tasks()))
        loop.start()
        at_once(6, in_thread)
        loop.join(60.0)
        bus.flush()

        with bus.subscription(pairs, prefetch=1000) as messages:
            found: dict[str, list[int]] = {}
            for delivery in harness.take(messages, 600):
                found.setdefault(delivery.payload[0], []).append(delivery.payload[1])
        assert found == {f"{kind} {place}": list(range(50)) for kind in ("thread", "task") for place in range(6)}


def refusing(
    which: Callable[[int], bool], answer: type[PublishFailed] = PublishFailed
) -> Callable[[Outgoing], MqkitError | None]:
    """A system that does not take some numbers."""

    def refuse(message: Outgoing) -> MqkitError | None:
        return answer(f"{message.id}: the word of the broker is no") if which(int(message.body)) else None

    return refuse


def at_once(count: int, action: Callable[[int], None]) -> None:
    """Run it in so many threads, started together; raises what one of them raised."""
    together = threading.Barrier(count)

    def run(place: int) -> None:
        together.wait(30.0)
        action(place)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(run, range(count)))


def take_all(harness: Harness, messages: Any, source: Queue[Any]) -> list[Delivery[Any]]:
    """Everything there is, unsettled: until nothing waits any more, and nothing is on its way."""
    taken: list[Delivery[Any]] = []

    def empty() -> bool:
        before = len(taken)
        taken.extend(messages.receive(max=1000, timeout=0.5))
        return len(taken) == before and not (depth := harness.depth(source)).ready and depth.inflight == before

    harness.wait(empty)
    return taken
