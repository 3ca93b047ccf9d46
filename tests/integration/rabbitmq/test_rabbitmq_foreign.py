"""Messages that other clients of AMQP publish, of any shape and size."""

from __future__ import annotations

import datetime
from typing import Any

import pika
import pytest

from mqkit import Delivery, Queue, Reject, Retry, fixed
from mqkit.backends.rabbitmq import names
from mqkit.codecs import RAW
from tests.rabbit_server import RabbitHarness

pytestmark = pytest.mark.slow

FRAME = 131_072 - 8  # bytes of a body that fit into one frame

SIZES = [0, 1, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME + 1]

PROPERTIES = [
    pika.BasicProperties(),
    pika.BasicProperties(headers={}),
    pika.BasicProperties(headers={"text": "ü", "number": -(1 << 40), "small": 1}, message_id="m", priority=0),
    pika.BasicProperties(headers={"list": [1, "two"], "table": {"a": {"b": True}}, "none": None, "bytes": b"\xff"}),
    pika.BasicProperties(headers={b"\xfe": "a name"}, message_id=b"\xfd\xfc", correlation_id=b"\xfb", type=b"\xfa"),
    pika.BasicProperties(headers={"when": datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)}, timestamp=1 << 31),
    pika.BasicProperties(
        "application/octet-stream", "gzip", {"x": "y"}, 1, 3, "c", "r", None, "id", 7, "t", "guest", "app", "cluster"
    ),
]


def test_what_others_publish_arrives_whole_and_in_its_order(harness: RabbitHarness) -> None:
    queue, bus = Queue("letters", bytes, codec=RAW), harness.bus()
    got: list[tuple[bytes, pika.BasicProperties]] = []

    @bus.on(queue)
    def handle(body: bytes, delivery: Delivery[Any]) -> None:
        got.append((body, delivery.message.native.properties))

    bus.declare(queue)
    sent = [(bytes([number + 1]) * size, one) for number, one in enumerate(PROPERTIES) for size in SIZES] * 3
    with harness.native() as channel:
        for body, properties in sent:
            channel.basic_publish("", names.queue_of(queue.address), body, properties)
    with bus.worker():
        harness.wait(lambda: len(got) == len(sent), within=30.0)
        harness.wait_empty(queue)

    assert got == sent


class InMilliseconds(datetime.datetime):
    """Written by pika as what a client in Java may take for a time: it reads as one in the year 55,840."""

    def utctimetuple(self) -> Any:
        return (1970, 1, 1, 0, 0, 1_700_000_000_000)


def test_headers_that_pika_cannot_read_stop_nobody(harness: RabbitHarness) -> None:
    queue, bus = Queue("letters", bytes, codec=RAW), harness.bus()
    got: list[tuple[bytes, str, str | None]] = []

    @bus.on(queue)
    def handle(body: bytes, delivery: Delivery[Any]) -> None:
        got.append((body, delivery.id, delivery.message.native.properties.content_type))

    bus.declare(queue)
    unreadable = pika.BasicProperties(
        "text/plain", headers={"known": "x", "when": InMilliseconds(2020, 1, 1)}, message_id="odd"
    )
    with harness.native() as channel:
        for properties in (unreadable, pika.BasicProperties("text/plain", message_id="even")):
            channel.basic_publish("", names.queue_of(queue.address), b"body", properties)
    with bus.worker():
        harness.wait(lambda: len(got) == 2)
        harness.wait_empty(queue)

    assert got == [(b"body", "odd", "text/plain"), (b"body", "even", "text/plain")]


@pytest.mark.parametrize("count", ["3", b"3", None])
def test_a_count_of_returns_that_is_none_is_no_count(harness: RabbitHarness, count: object) -> None:
    queue, bus = Queue("letters", bytes, codec=RAW), harness.bus()
    got: list[bytes] = []
    bus.on(queue)(got.append)
    bus.declare(queue)
    with harness.native() as channel:
        channel.basic_publish(
            "", names.queue_of(queue.address), b"body", pika.BasicProperties(headers={"x-delivery-count": count})
        )
    with bus.worker():
        harness.wait(lambda: got)
        harness.wait_empty(queue)

    assert got == [b"body"]


def test_a_dead_letter_that_would_be_too_large_with_its_headers_goes_without_them(harness: RabbitHarness) -> None:
    """A byte that is no text takes three in the copy."""
    letters, bus = Queue("letters", bytes, codec=RAW), harness.bus()
    seen: list[bytes] = []

    @bus.on(letters)
    def handle(body: bytes) -> None:
        if body == b"bad":
            raise Reject("r" * 1000)
        seen.append(body)

    bus.declare(letters)
    with harness.native() as channel:
        for body, headers in ((b"bad", {"raw": b"\xff" * 46_000}), (b"good", {})):
            properties = pika.BasicProperties(headers=headers, message_id=body.decode())
            channel.basic_publish("", names.queue_of(letters.address), body, properties)
    with bus.worker():
        harness.wait(lambda: seen == [b"good"])
        harness.wait_empty(letters)
    [letter] = bus.dead_letters(letters).list()

    assert (letter.id, letter.message.body, letter.message.headers) == ("bad", b"bad", {})
    assert letter.reason == "r" * 100


def test_what_a_foreign_dead_letter_says_of_its_priority_stops_no_replay(harness: RabbitHarness) -> None:
    letters, bus = Queue("letters", bytes, codec=RAW), harness.bus()
    bus.declare(letters)
    with harness.native() as channel:
        for priority in ("256", "-257", "3"):
            headers = {"mq-dead-reason": "x", "mq-dead-priority": priority}
            properties = pika.BasicProperties(headers=headers, message_id=priority)
            channel.basic_publish("", names.queue_of(letters.address.dead_letters), b"body", properties)

    assert bus.dead_letters(letters).replay() == 3
    with bus.subscription(letters) as messages:
        assert {delivery.id for delivery in harness.take(messages, 3)} == {"256", "-257", "3"}


def test_what_is_no_note_among_notes_is_removed(harness: RabbitHarness) -> None:
    letters, bus, tried = Queue("letters", str, key=str), harness.bus(), list[str]()

    @bus.on(letters, retry=Retry(attempts=3, backoff=fixed(0.01)))
    def handle(body: str, delivery: Delivery[str]) -> None:
        tried.append(f"{body} {delivery.attempt}")
        raise ValueError(body)

    bus.declare(letters)
    notes = names.notes_of(letters.address)
    with harness.native() as channel:
        bus.publish(letters, "first")
        with bus.worker():
            harness.wait(lambda: len(tried) == 3)  # now there is a queue of notes
            harness.wait(lambda: len(bus.dead_letters(letters).list()) == 1)
        for body in (
            b"hello",
            b'{"id":1}',
            b'{"id":"a","x":' + b"[" * 3000 + b"]" * 3000 + b"}",
            b'{"id":"a","attempt":1e9}',
        ):
            channel.basic_publish("", notes, body)
        with bus.worker():
            bus.publish(letters, "second")
            harness.wait(lambda: len(bus.dead_letters(letters).list()) == 2)
        harness.wait(lambda: channel.queue_declare(notes, passive=True).method.message_count == 0)

    assert tried == [f"{body} {attempt}" for body in ("first", "second") for attempt in (1, 2, 3)]
