"""What becomes of a declaration while AWS throttles, or cannot just now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mqkit import Bus, Queue, Topic
from mqkit.backends.sqs.clients import PAUSES
from mqkit.errors import Denied, Lost, PublishUnknown, Unavailable
from mqkit.testing.brokers.aws import REGION
from tests.sqs_server import Faltering, HttpServer, Refusing, SqsHarness

pytestmark = pytest.mark.slow

OVERWRITING = ("SetQueueAttributes", "TagQueue")


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def to(server: HttpServer, harness: SqsHarness, cleanup: ExitStack) -> Bus:
    """A bus of this case, by way of a server."""
    cleanup.callback(server.close)
    host, port = harness.endpoint()
    return harness.bus(harness.url.replace(f"{host}:{port}", f"{host}:{server.port}"))


@pytest.mark.parametrize(
    ("status", "code", "after", "spared"),
    [
        (400, "ThrottlingException", False, ()),
        (500, "InternalError", False, OVERWRITING),
        (503, "ServiceUnavailable", True, OVERWRITING),
    ],
)
def test_what_the_server_cannot_just_now_is_asked_again(
    harness: SqsHarness, cleanup: ExitStack, status: int, code: str, after: bool, spared: tuple[str, ...]
) -> None:
    server = Faltering(harness.endpoint(), 2, status, code, spared=spared, after=after)
    bus = to(server, harness, cleanup)
    words, events = Queue(harness.unique("words"), str), Topic(harness.unique("events"), str, groups=["a", "b"])

    bus.declare(words, events)

    for operation in {"GetQueueUrl", "CreateQueue", "CreateTopic", "ListSubscriptionsByTopic", "Subscribe"}:
        assert server.asked[operation] >= 3, operation
    assert len(harness.subscriptions(events.name)) == 2
    harness.bus().publish(events, "event")
    for group in ("a", "b"):
        with harness.bus().subscription(events, group=group) as messages:
            assert [delivery.payload for delivery in harness.take(messages, 1)] == ["event"]


@pytest.mark.parametrize(("status", "code"), [(400, "ThrottlingException"), (500, "InternalError")])
def test_it_is_asked_a_few_times_and_no_more(harness: SqsHarness, cleanup: ExitStack, status: int, code: str) -> None:
    server = Faltering(harness.endpoint(), 1000, status, code)
    bus = to(server, harness, cleanup)

    with pytest.raises(Unavailable, match="too often" if status == 400 else "has a problem"):
        bus.declare(Queue(harness.unique("words"), str))

    assert server.asked == {"GetQueueUrl": 1 + len(PAUSES)}


def test_a_server_that_takes_its_time_to_say_so_is_asked_less_often(harness: SqsHarness, cleanup: ExitStack) -> None:
    server = Faltering(harness.endpoint(), 1000, 500, "InternalError", delay=2.6)
    bus = to(server, harness, cleanup)

    with pytest.raises(Lost):
        bus.declare(Queue(harness.unique("words"), str))

    assert server.asked["GetQueueUrl"] <= 2


def test_what_overwrites_is_not_repeated_for_another_may_have_written_meanwhile(
    harness: SqsHarness, cleanup: ExitStack
) -> None:
    server = Faltering(harness.endpoint(), 1, 500, "InternalError", operations=["SetQueueAttributes"], after=True)
    bus = to(server, harness, cleanup)
    events = Topic(harness.unique("events"), str, groups=["all"])

    with pytest.raises(Lost):
        bus.declare(events)
    assert server.asked["SetQueueAttributes"] == 1

    bus.declare(events)
    assert server.asked["SetQueueAttributes"] == 1  # it had been done
    assert len(harness.subscriptions(events.name)) == 1


def test_a_message_is_not_sent_again(harness: SqsHarness, cleanup: ExitStack) -> None:
    server = Faltering(harness.endpoint(), 1, 500, "InternalError", operations=["SendMessageBatch"], after=True)
    bus = to(server, harness, cleanup)
    words = Queue(harness.unique("words"), str)

    with pytest.raises(PublishUnknown):
        bus.publish(words, "once")

    assert server.asked["SendMessageBatch"] == 1
    with harness.bus().subscription(words) as messages:
        assert [delivery.payload for delivery in harness.take(messages, 1)] == ["once"]
        assert messages.receive(timeout=1.0) == []


def test_a_refusal_is_final(cleanup: ExitStack) -> None:
    server = Refusing()
    cleanup.callback(server.close)
    bus = Bus(f"sqs://somebody:wrong@127.0.0.1:{server.port}/?region={REGION}&tls=false")
    cleanup.callback(bus.close, timeout=1.0)

    with pytest.raises(Denied):
        bus.declare(Queue("words", str))

    assert len(server.asked) == 1
