"""What SQS, the way to it and its neighbours may do, and what becomes of messages."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mqkit import Broadcast, Bus, Delivery, Queue, Reject, Retry, Topic
from mqkit.backends.sqs import wire
from mqkit.backends.sqs.desk import ALONE
from mqkit.backends.sqs.listener import SEEN
from mqkit.backends.sqs.options import QUEUE_BYTES, TOPIC_BYTES
from mqkit.errors import ConfigError, Denied, MessageTooLarge, PublishUnknown, TopologyMismatch, Unavailable
from mqkit.native import SnsTopic, SqsQueue
from mqkit.patterns.retry import fixed
from mqkit.testing import run_until_idle
from mqkit.testing.chaos import FaultProxy
from tests.sqs_server import Refusing, SqsHarness

pytestmark = pytest.mark.slow


def test_a_handler_longer_than_the_visibility_timeout_runs_once(harness: SqsHarness) -> None:
    words = Queue(harness.unique("words"), str)
    bus, other = harness.bus(harness.url_with(lease=5)), harness.bus(harness.url_with(lease=5))
    begun: list[str] = []
    ended: list[str] = []

    def handle(word: str) -> None:
        begun.append(word)
        time.sleep(12.0)  # the work itself, more than two leases long
        ended.append(word)

    bus.on(words)(handle)
    other.on(words)(handle)
    bus.publish(words, "slow")
    with bus.worker(), other.worker():
        harness.wait(lambda: ended, within=20.0)
        harness.wait_empty(words)

    assert begun == ended == ["slow"]


def test_a_thousand_messages_with_twelve_headers_come_round(harness: SqsHarness) -> None:
    numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
    seen: dict[int, dict[str, str]] = {}
    tickets = [
        bus.publish_soon(numbers, number, headers={f"h{place}": f"{number} {place}" for place in range(12)})
        for number in range(1000)
    ]
    bus.flush(timeout=60.0)

    @bus.on(numbers, concurrency=4)
    def handle(number: int, delivery: Delivery[int]) -> None:
        seen[number] = dict(delivery.headers)

    run_until_idle(bus, timeout=60.0)

    assert len(tickets) == 1000
    assert seen == {n: {f"h{place}": f"{n} {place}" for place in range(12)} for n in range(1000)}


@pytest.mark.parametrize("keyed", [True, False])
def test_a_lost_reply_doubles_nothing_that_is_fifo_and_elsewhere_that_message_only(
    harness: SqsHarness, keyed: bool
) -> None:
    words = Queue(harness.unique("words"), str, key=(lambda word: word) if keyed else None)
    with FaultProxy(*harness.endpoint()) as proxy:
        bus = harness.bus(proxy.through(harness.url))
        bus.publish(words, "before")
        proxy.freeze_replies()
        with pytest.raises(PublishUnknown):
            bus.publish(words, "lost", id="the-one", timeout=30.0)
        proxy.reset()
        proxy.thaw()

        bus.publish(words, "lost", id="the-one", timeout=30.0)
        bus.publish(words, "after")

    with harness.bus().subscription(words) as messages:
        taken = Counter(delivery.id for delivery in harness.take(messages, 3 if keyed else 4))
        assert messages.receive(timeout=1.0) == []
    assert taken["the-one"] == (1 if keyed else 2)


def test_delays_beyond_what_sqs_takes_are_kept_by_hops(harness: SqsHarness) -> None:
    url = harness.url_with(hop=1)
    words, keyed, events = (
        Queue(harness.unique("words"), str),
        Queue(harness.unique("keyed"), str, key=str),
        Topic(harness.unique("events"), str, groups=["all"]),
    )
    bus, came = harness.bus(url), dict[str, float]()
    for source, group in ((words, None), (keyed, None), (events, "all")):

        @bus.on(source, group=group)
        def handle(word: str) -> None:
            assert word not in came
            came[word] = time.monotonic()

    bus.declare(words, keyed, events)
    began: dict[str, float] = {}
    with bus.worker():
        for source in (words, keyed, events):
            for seconds in (2.5, 4.5):
                word = f"{source.name} {seconds}"
                began[word] = time.monotonic()
                bus.publish(source, word, delay=seconds)
        harness.wait(lambda: len(came) == 6, within=20.0)

    for word, at in came.items():
        assert float(word.split()[1]) <= at - began[word] < float(word.split()[1]) + 6.0, word


def test_what_a_topic_will_not_take_when_it_is_due_is_refused_at_once(harness: SqsHarness) -> None:
    events, bus = Topic("events", str, groups=["one"]), harness.bus()

    with pytest.raises(MessageTooLarge, match="SNS takes 262,144"):
        bus.publish(events, "x" * 300_000, delay=1.0)


def test_retries_of_a_fifo_queue_without_order_are_delayed_and_not_dropped(harness: SqsHarness) -> None:
    words, bus = Queue(harness.unique("words"), str, key=lambda _: "one"), harness.bus()
    tries: list[int] = []

    @bus.on(words, order="none", retry=Retry(attempts=3, backoff=fixed(0.5)))
    def handle(word: str, delivery: Delivery[str]) -> None:
        tries.append(delivery.attempt)
        raise ConnectionError(word)

    bus.publish(words, "flaky")
    run_until_idle(bus, timeout=60.0)
    assert tries == [1, 2, 3]

    bus.dead_letters(words).replay()
    run_until_idle(bus, timeout=60.0)

    assert tries == [1, 2, 3, 1, 2, 3]
    assert [dead.attempts for dead in bus.dead_letters(words).list()] == [3]


def test_wrong_credentials_an_absent_server_and_a_silent_one_are_told_apart_within_five_seconds(
    harness: SqsHarness,
) -> None:
    def failure(url: str) -> tuple[type[BaseException], str, float]:
        bus, began = Bus(url, declare="never"), time.monotonic()
        try:
            with pytest.raises((Denied, Unavailable)) as caught, bus.subscription(Queue("words", str)) as messages:
                messages.receive(timeout=1.0)
        finally:
            bus.close(timeout=1.0)
        return type(caught.value), str(caught.value), time.monotonic() - began

    denied = failure(harness.denied_url())
    absent = failure("sqs://key:hidden-secret@127.0.0.1:9/?region=us-east-1&tls=false")

    assert denied[0] is Denied
    assert "access key" in denied[1]
    assert denied[2] < 5.0
    assert absent[0] is Unavailable
    assert "hidden-secret" not in absent[1]


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"{}", b""])
def test_an_answer_that_is_none_of_sqs_is_no_success(body: bytes) -> None:
    proxy = Refusing(status=200, body=body)
    bus = Bus(f"sqs://key:secret@127.0.0.1:{proxy.port}/?region=us-east-1&tls=false", declare="never")
    try:
        with pytest.raises(Exception) as caught:
            bus.publish(Queue("words", str), "word", timeout=3.0)
    finally:
        bus.close(timeout=1.0)
        proxy.close()

    assert "proxy" in str(caught.value) or "TimedOut" in type(caught.value).__name__


def test_what_others_make_of_our_attribute_stops_nobody(harness: SqsHarness) -> None:
    texts, bus = Queue(harness.unique("texts"), str), harness.bus()
    bus.declare(texts)
    seen: list[str] = []
    bus.on(texts)(seen.append)

    def send(body: str, head: str, **more: dict[str, Any]) -> None:
        ours = {wire.OURS: {"DataType": "String", "StringValue": head}}
        harness.send_native(texts, json.dumps(body, ensure_ascii=False), {**ours, **more})

    with bus.worker():
        send("\u00e4", '{"id": "a", "encoding": "base64"}')
        send("deep", '{"id": "b", "more": %s}' % ("[" * 3000 + "]" * 3000))
        send("often", '{"id": "c", "envelope": {"attempt": %s}}' % ("9" * 400))
        due = f'{{"id": "d", "due": {time.time() + 2.0}}}'
        send("octets", due, octets={"DataType": "Binary", "BinaryValue": b"\x00\xff"})
        bus.publish(texts, "neighbour")
        harness.wait_empty(texts)

    assert sorted(seen) == sorted(["\u00e4", "deep", "often", "octets", "neighbour"])


def test_a_dead_letter_that_would_be_too_large_goes_without_what_can_be_spared(harness: SqsHarness) -> None:
    texts, bus = Queue(harness.unique("texts"), str), harness.bus()
    bus.declare(texts)
    body = "x" * (QUEUE_BYTES - 2000)
    harness.send_native(texts, json.dumps(body), {"colour": {"DataType": "String", "StringValue": "red" * 200}})

    @bus.on(texts)
    def handle(_: str) -> None:
        raise Reject("r" * 2000)

    with bus.worker():
        harness.wait(lambda: bus.dead_letters(texts).list(), within=30.0)
        harness.wait_empty(texts)
    [letter] = bus.dead_letters(texts).list()

    assert (letter.message.body, letter.message.headers) == (json.dumps(body).encode(), {})
    assert letter.reason == "r" * 100


def test_what_a_topic_will_not_take_when_it_is_due_keeps_nothing_waiting(
    harness: SqsHarness, caplog: pytest.LogCaptureFixture
) -> None:
    """A queue takes a message that is too large for a topic."""
    events, bus, seen = Topic(harness.unique("events"), str, groups=["all"]), harness.bus(), list[str]()
    bus.on(events, group="all")(seen.append)
    bus.declare(events)
    harness.send_to_the_delayed(events, "x" * (TOPIC_BYTES + 1000))
    with bus.worker(), caplog.at_level(logging.WARNING, "mqkit"):
        for number in range(3):
            harness.wait(lambda: "delayed.refused" in [record.message for record in caplog.records])
            bus.publish(events, str(number), delay=0.5)
            harness.wait(lambda: len(seen) == number + 1)  # noqa: B023

    sources = [str(vars(record).get("source")) for record in caplog.records]
    assert [source for source in sources if events.name in source] == []


def test_what_somebody_wrote_into_tags_of_ours_stops_nobody(harness: SqsHarness) -> None:
    texts, ticks = Queue(harness.unique("texts"), str), Broadcast(harness.unique("ticks"), str)
    bus, other = harness.bus(), harness.bus()
    bus.declare(texts, ticks)
    with bus.subscription(ticks):
        harness.tag_all({SEEN: "1.5", f"{ALONE}x": "", f"{ALONE}y": "1.0"})
        with other.subscription(ticks) as messages:
            other.publish(ticks, "tick")
            assert messages.receive(timeout=20.0)

    bus.publish(texts, "word")
    with bus.subscription(texts) as messages:
        harness.take(messages, 1)  # and it comes back, of which notes may tell more
    with bus.subscription(texts) as messages:
        [again] = harness.take(messages, 1)
        again.ack()

    assert again.payload == "word"


@pytest.mark.parametrize(("status", "kind"), [(403, Denied), (503, Unavailable)])
def test_a_role_that_cannot_be_assumed_is_told_apart_from_a_queue_that_may_not_be_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int, kind: type[Exception]
) -> None:
    denied = b"<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
    sts, sqs = Refusing(status, denied, "text/xml"), Refusing()
    configuration, keys = tmp_path / "config", tmp_path / "keys"
    configuration.write_text(
        "[default]\nrole_arn = arn:aws:iam::000000000000:role/orders\nsource_profile = base\nregion = us-east-1\n"
    )
    keys.write_text("[base]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = hidden-secret\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(configuration))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{sts.port}")
    bus = Bus(f"sqs://127.0.0.1:{sqs.port}/?region=us-east-1&tls=false", declare="never")
    try:
        with pytest.raises(kind, match=r"cannot be asked.*AssumeRole") as caught:
            bus.open(timeout=10.0)
    finally:
        bus.close(timeout=1.0)
        sts.close()
        sqs.close()

    assert "hidden-secret" not in str(caught.value)
    assert sts.asked
    assert sqs.asked == []


def test_listening_leaves_no_connection_behind(harness: SqsHarness) -> None:
    ticks = Broadcast(harness.unique("ticks"), str)
    bus = harness.bus()
    bus.declare(ticks)

    def listen() -> None:
        with bus.subscription(ticks) as messages:
            bus.publish(ticks, "tick")
            assert messages.receive(timeout=20.0)

    listen()
    gc.collect()
    gc.disable()  # or it would close what is left
    try:
        before = sockets()
        for _ in range(3):
            listen()
        harness.wait(lambda: sockets() <= before)
    finally:
        gc.enable()


def sockets() -> int:
    """Of this process."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(descriptor).startswith("socket:")
    return found


def test_a_redrive_policy_of_aws_that_fires_before_ours_is_refused_and_one_that_may_is_warned_of(
    harness: SqsHarness,
) -> None:
    early, late, bus = Queue(harness.unique("early"), str), Queue(harness.unique("late"), str), harness.bus()
    bus.declare(early, late)
    harness.redrive(early, 3)
    harness.redrive(late, 50)

    with pytest.raises(ConfigError, match="maxReceiveCount=3"), bus.subscription(early) as messages:
        messages.receive(timeout=1.0)
    bus.publish(late, "fine")
    with bus.subscription(late) as messages:
        [delivery] = harness.take(messages, 1)
        delivery.ack()

    warnings = list(bus.link.backend.warnings())
    assert any("maxReceiveCount=50" in warning for warning in warnings)


def test_groups_get_what_their_filter_takes_and_another_filter_is_a_mismatch(harness: SqsHarness) -> None:
    name = harness.unique("orders")

    def orders(region: str) -> Topic[int]:
        filters = {"eu": {"region": [{"prefix": region}]}}
        return Topic(name, int, groups=["eu", "all"], native=SnsTopic(filters=filters))

    bus = harness.bus()
    for number, region in enumerate(["eu-west-1", "us-east-1", "eu-central-1"]):
        bus.publish(orders("eu-"), number, headers={"region": region})

    for group, expected in (("eu", {0, 2}), ("all", {0, 1, 2})):
        with bus.subscription(orders("eu-"), group=group) as messages:
            assert {delivery.payload for delivery in harness.take(messages, len(expected))} == expected
            assert messages.receive(timeout=0.5) == []
    with pytest.raises(TopologyMismatch, match="FilterPolicy"):
        harness.bus().declare(orders("us-"))


def test_another_kind_and_other_attributes_are_a_mismatch(harness: SqsHarness) -> None:
    name = harness.unique("words")
    harness.bus().declare(Queue(name, str, native=SqsQueue(attributes={"KmsDataKeyReusePeriodSeconds": "300"})))

    with pytest.raises(TopologyMismatch, match="key="):
        harness.bus().declare(Queue(name, str, key=str))
    with pytest.raises(TopologyMismatch, match="ReusePeriod"):
        harness.bus().declare(Queue(name, str, native=SqsQueue(attributes={"KmsDataKeyReusePeriodSeconds": "400"})))


def test_the_access_policy_of_a_group_keeps_what_its_owner_put_there(harness: SqsHarness) -> None:
    events = Topic(harness.unique("events"), int, groups=["all"])
    harness.bus().declare(events)
    theirs = {"Sid": "theirs", "Effect": "Deny", "Principal": "*", "Action": "sqs:ReceiveMessage", "Resource": "*"}
    harness.set_policy(events, "all", json.dumps({"Version": "2012-10-17", "Statement": [theirs]}))

    harness.bus().declare(events)

    assert [one["Sid"][:5] for one in harness.policy(events, "all")["Statement"]] == ["their", "mqkit"]
