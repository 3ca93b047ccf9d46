"""What becomes of a declaration while AWS throttles, or cannot just now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

import pytest

from mqkit import Bus, Queue, Topic
from mqkit._topology import source_declaration
from mqkit.backends.sqs import patience
from mqkit.errors import (
    Denied,
    MqkitError,
    PublishFailed,
    PublishUnknown,
    TopologyMismatch,
    Unavailable,
)
from mqkit.testing.brokers.aws import REGION
from tests.sqs_server import Faltering, HttpServer, Refusing, SqsHarness

pytestmark = pytest.mark.slow

LOOKING = {"GetQueueUrl", "GetQueueAttributes", "ListQueueTags", "ListTopics", "ListSubscriptionsByTopic"}
MAKING = {"CreateQueue", "CreateTopic", "Subscribe"}


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment uses no patience up."""
    monkeypatch.setattr(patience, "LONGEST", 60.0)


def to(server: HttpServer, harness: SqsHarness, cleanup: ExitStack, **options: Any) -> Bus:
    """A bus of this case, by way of a server."""
    cleanup.callback(server.close)
    host, port = harness.endpoint()
    url = harness.url_with(timeout=30)
    return harness.bus(url.replace(f"{host}:{port}", f"{host}:{server.port}"), **options)


def declare_source(bus: Bus, queue: Queue[Any], *, order: Literal["none", "key"]) -> None:
    """As a consumer does."""
    admin = bus.link.backend.admin()
    try:
        admin.declare([source_declaration(queue, None, "sqs", order=order)])
    finally:
        admin.close()


@pytest.mark.usefixtures("longer")
@pytest.mark.parametrize(
    ("status", "code", "after"),
    [(400, "ThrottlingException", False), (500, "InternalError", False), (503, "ServiceUnavailable", True)],
)
def test_what_the_server_cannot_just_now_is_tried_again(
    harness: SqsHarness, cleanup: ExitStack, status: int, code: str, after: bool
) -> None:
    server = Faltering(harness.endpoint(), 2, status, code, after=after)
    bus = to(server, harness, cleanup)
    words = Queue(harness.unique("words"), str, key=str)
    events = Topic(harness.unique("events"), str, groups=["a", "b"])

    declare_source(bus, words, order="key")
    bus.declare(events)

    for operation in LOOKING | MAKING:
        assert server.asked[operation] >= 3, operation
    # Looked at before it is written once more, and there are two groups with a policy each.
    assert server.asked["TagQueue"] == (1 if after else 3)
    assert server.asked["SetQueueAttributes"] == (2 if after else 4)
    assert len(harness.subscriptions(events.name)) == 2
    harness.bus(declare="never").publish(events, "event")
    for group in ("a", "b"):
        with harness.bus(declare="never").subscription(events, group=group) as messages:
            assert [delivery.payload for delivery in harness.take(messages, 1)] == ["event"]


@pytest.mark.parametrize(("status", "code"), [(400, "ThrottlingException"), (500, "InternalError")])
def test_patience_ends(harness: SqsHarness, cleanup: ExitStack, status: int, code: str) -> None:
    server = Faltering(harness.endpoint(), 1000, status, code)
    bus = to(server, harness, cleanup)

    with pytest.raises(Unavailable, match="too often" if status == 400 else "has a problem"):
        bus.declare(Queue(harness.unique("words"), str))

    assert server.asked.keys() == {"GetQueueUrl"}
    assert server.asked["GetQueueUrl"] < 10


@pytest.mark.usefixtures("longer")
def test_a_policy_that_another_writes_meanwhile_is_kept(harness: SqsHarness, cleanup: ExitStack) -> None:
    events = Topic(harness.unique("events"), str, groups=["all"])
    theirs = {"Sid": "theirs", "Effect": "Deny", "Principal": "*", "Action": "sqs:ReceiveMessage", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [theirs]})
    server = Faltering(
        harness.endpoint(), 2, 400, "ThrottlingException", operations=["SetQueueAttributes"],
        meanwhile=lambda: harness.set_policy(events, "all", document),
    )  # fmt: skip

    to(server, harness, cleanup).declare(events)

    assert server.asked["SetQueueAttributes"] == 3
    assert [one["Sid"][:5] for one in harness.policy(events, "all")["Statement"]] == ["their", "mqkit"]


@pytest.mark.usefixtures("longer")
def test_of_two_orders_only_one_is_agreed_on(harness: SqsHarness, cleanup: ExitStack) -> None:
    words, other = Queue(harness.unique("words"), str, key=str), harness.bus()
    server = Faltering(
        harness.endpoint(), 2, 400, "ThrottlingException", operations=["TagQueue"],
        meanwhile=lambda: declare_source(other, words, order="key"),
    )  # fmt: skip

    with pytest.raises(TopologyMismatch, match="order='key'"):
        declare_source(to(server, harness, cleanup), words, order="none")

    assert server.asked["TagQueue"] == 1


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(400, "ThrottlingException", PublishFailed), (500, "InternalError", PublishUnknown)],
)
def test_a_message_is_not_sent_again(
    harness: SqsHarness, cleanup: ExitStack, status: int, code: str, error: type[MqkitError]
) -> None:
    server = Faltering(harness.endpoint(), 1, status, code, operations=["SendMessageBatch"])
    bus = to(server, harness, cleanup)

    with pytest.raises(MqkitError) as caught:
        bus.publish(Queue(harness.unique("words"), str), "once")

    assert type(caught.value) is error
    assert server.asked["SendMessageBatch"] == 1


def test_looking_for_the_place_of_a_message_is_not_repeated(harness: SqsHarness, cleanup: ExitStack) -> None:
    """Others wait behind it."""
    events = Topic(harness.unique("events"), str, groups=["all"])
    server = Faltering(harness.endpoint(), 1, 400, "ThrottlingException", operations=["ListTopics"])
    bus = to(server, harness, cleanup, declare="never")

    with pytest.raises(PublishFailed):
        bus.publish(events, "event")

    assert server.asked["ListTopics"] == 1


def test_a_refusal_is_final(cleanup: ExitStack) -> None:
    server = Refusing()
    cleanup.callback(server.close)
    bus = Bus(f"sqs://somebody:wrong@127.0.0.1:{server.port}/?region={REGION}&tls=false")
    cleanup.callback(bus.close, timeout=1.0)

    with pytest.raises(Denied):
        bus.declare(Queue("words", str))

    assert len(server.asked) == 1
