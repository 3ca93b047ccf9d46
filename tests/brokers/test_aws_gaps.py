"""What the emulators of SQS do otherwise than AWS: each line of `GAPS` that a moment can show, on both of them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from botocore.exceptions import ClientError

from mqkit.testing.brokers import GAPS, AwsProcess, aws_client
from tests.aws_emulators import EMULATORS, program_of

pytestmark = pytest.mark.slow  # emulators are shared
UNPROBED = {"large-backlog", "retention", "in-flight-limit", "throttling", "encryption", "eventual-consistency"}
STRING = {"DataType": "String", "StringValue": "x"}


class Aws:
    """One emulator, and what every probe begins with: new queues and topics."""

    def __init__(self, emulator: str, url: str) -> None:
        self.emulator, self.url = emulator, url
        self.sqs, self.sns = aws_client("sqs", url), aws_client("sns", url)

    def queue(self, **attributes: object) -> str:
        name = uuid.uuid4().hex + (".fifo" if "FifoQueue" in attributes else "")
        values = {key: str(value) for key, value in attributes.items()}
        return str(self.sqs.create_queue(QueueName=name, Attributes=values)["QueueUrl"])

    def fifo_queue(self) -> str:
        return self.queue(FifoQueue="true", VisibilityTimeout=30)

    def topic(self, **attributes: str) -> str:
        name = uuid.uuid4().hex + (".fifo" if "FifoTopic" in attributes else "")
        return str(self.sns.create_topic(Name=name, Attributes=attributes)["TopicArn"])

    def subscribe(self, topic: str, queue: str, **attributes: str) -> None:
        raw = {"RawMessageDelivery": "true", **attributes}
        self.sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=self.arn(queue), Attributes=raw)

    def arn(self, queue: str) -> str:
        found = self.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
        return str(found["Attributes"]["QueueArn"])

    def send(self, queue: str, body: str = "x", **options: object) -> None:
        self.sqs.send_message(QueueUrl=queue, MessageBody=body, **options)

    def send_to_group(self, queue: str, bodies: str) -> None:
        for body in bodies:
            self.send(queue, body, MessageGroupId="g", MessageDeduplicationId=body)

    def receive(self, queue: str, wait: int = 0, **options: object) -> list[dict[str, Any]]:
        bounds = {"MaxNumberOfMessages": 10, "WaitTimeSeconds": wait, **options}
        return list(self.sqs.receive_message(QueueUrl=queue, **bounds).get("Messages", []))

    def bodies(self, queue: str, wait: int = 0) -> Sequence[str]:
        return [message["Body"] for message in self.receive(queue, wait)]


def refuses(call: Callable[..., object], **arguments: object) -> bool:
    """Whether the server does; one that does not know the call has refused nothing."""
    try:
        call(**arguments)
    except ClientError as exc:
        return exc.response["ResponseMetadata"]["HTTPStatusCode"] < 500
    return False


# -- the probes: whether it does as AWS does ---------------------------------------------------------------------------


def credentials(aws: Aws) -> bool:
    """Everybody else's are refused."""
    return refuses(aws_client("sqs", aws.url.replace("test:test@", "nobody:wrong@")).list_queues)


def queue_policy(aws: Aws) -> bool:
    """SNS may not send to a queue whose policy does not say so."""
    topic, queue = aws.topic(), aws.queue()
    aws.subscribe(topic, queue)
    aws.sns.publish(TopicArn=topic, Message="x")
    return not aws.receive(queue, wait=20)


def attribute_count(aws: Aws) -> bool:
    many = {f"a{number}": STRING for number in range(11)}
    return refuses(aws.sqs.send_message, QueueUrl=aws.queue(), MessageBody="x", MessageAttributes=many)


def attribute_names(aws: Aws) -> bool:
    names = ["aws.x", "a..b", "a b", ".a"]
    queue = aws.queue()
    return all(
        refuses(aws.sqs.send_message, QueueUrl=queue, MessageBody="x", MessageAttributes={name: STRING})
        for name in names
    )


def group_id_characters(aws: Aws) -> bool:
    queue, send = aws.fifo_queue(), aws.sqs.send_message
    return all(
        refuses(send, QueueUrl=queue, MessageBody="x", MessageGroupId=group, MessageDeduplicationId="d")
        for group in ["a\n", "a b", "ä"]
    )


def longest_delay(aws: Aws) -> bool:
    return refuses(aws.sqs.send_message, QueueUrl=aws.queue(), MessageBody="x", DelaySeconds=901)


def longest_visibility(aws: Aws) -> bool:
    queue = aws.queue()
    aws.send(queue)
    [message] = aws.receive(queue)
    handle = message["ReceiptHandle"]
    return refuses(aws.sqs.change_message_visibility, QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=43_201)


def shortest_retention(aws: Aws) -> bool:
    attributes = {"MessageRetentionPeriod": "5"}
    return refuses(aws.sqs.set_queue_attributes, QueueUrl=aws.queue(), Attributes=attributes)


def size_with_attributes(aws: Aws) -> bool:
    attributes = {"a": STRING}
    return refuses(
        aws.sqs.send_message, QueueUrl=aws.queue(), MessageBody="x" * 1_048_576, MessageAttributes=attributes
    )


def expired_visibility(aws: Aws) -> bool:
    queue = aws.queue()
    aws.send(queue)
    [message] = aws.receive(queue, VisibilityTimeout=0)
    handle = message["ReceiptHandle"]
    return refuses(aws.sqs.change_message_visibility, QueueUrl=queue, ReceiptHandle=handle, VisibilityTimeout=30)


def receive_attempt(aws: Aws) -> bool:
    """The same attempt brings the same messages again, for its answer may have been lost."""
    queue = aws.fifo_queue()
    aws.send_to_group(queue, "a")
    first, again = (aws.receive(queue, ReceiveRequestAttemptId="one") for _ in range(2))
    return len(first) == len(again) == 1


def partial_release(aws: Aws) -> bool:
    """While one message of a group is in flight, none of the group is handed out."""
    queue = aws.fifo_queue()
    aws.send_to_group(queue, "abcd")
    head = aws.receive(queue, MaxNumberOfMessages=3)[0]
    aws.sqs.change_message_visibility(QueueUrl=queue, ReceiptHandle=head["ReceiptHandle"], VisibilityTimeout=0)
    return "d" not in aws.bodies(queue)


def purge_interval(aws: Aws) -> bool:
    queue = aws.queue()
    aws.sqs.purge_queue(QueueUrl=queue)
    return refuses(aws.sqs.purge_queue, QueueUrl=queue)


def dead_letter_sources(aws: Aws) -> bool:
    dead = aws.queue()
    queue = aws.queue(RedrivePolicy=json.dumps({"deadLetterTargetArn": aws.arn(dead), "maxReceiveCount": 1}))
    try:
        return bool(aws.sqs.list_dead_letter_source_queues(QueueUrl=dead)["queueUrls"] == [queue])
    except ClientError:
        return False


def move_task(aws: Aws) -> bool:
    dead = aws.queue()
    aws.queue(RedrivePolicy=json.dumps({"deadLetterTargetArn": aws.arn(dead), "maxReceiveCount": 1}))
    try:
        return "TaskHandle" in aws.sqs.start_message_move_task(SourceArn=aws.arn(dead))
    except ClientError:
        return False


def subscription_kinds(aws: Aws) -> bool:
    queue = aws.arn(aws.fifo_queue())
    return refuses(aws.sns.subscribe, TopicArn=aws.topic(), Protocol="sqs", Endpoint=queue)


def subscription_conflict(aws: Aws) -> bool:
    topic, queue = aws.topic(), aws.queue()
    aws.subscribe(topic, queue)
    other = {"RawMessageDelivery": "false"}
    return refuses(aws.sns.subscribe, TopicArn=topic, Protocol="sqs", Endpoint=aws.arn(queue), Attributes=other)


def subscription_dead_letters(aws: Aws) -> bool:
    topic, queue, dead = aws.topic(), aws.queue(), aws.queue()
    aws.subscribe(topic, queue, RedrivePolicy=json.dumps({"deadLetterTargetArn": aws.arn(dead)}))
    aws.sqs.delete_queue(QueueUrl=queue)
    aws.sns.publish(TopicArn=topic, Message="x")
    return bool(aws.receive(dead, wait=10))


def topic_characters(aws: Aws) -> bool:
    return refuses(aws.sns.publish, TopicArn=aws.topic(), Message="a\x01b")


def topic_batch_entries(aws: Aws) -> bool:
    """One bad entry fails alone."""
    entries = [{"Id": "good", "Message": "x"}, {"Id": "bad", "Message": "x", "MessageAttributes": {"a..b": STRING}}]
    try:
        answer = aws.sns.publish_batch(TopicArn=aws.topic(), PublishBatchRequestEntries=entries)
    except ClientError:
        return False
    return [one["Id"] for one in answer["Successful"]] == ["good"]


def fifo_topic_deduplication(aws: Aws) -> bool:
    """In front of a standard queue too."""
    topic, queue = aws.topic(FifoTopic="true"), aws.queue()
    aws.subscribe(topic, queue)
    for body, number in [("a", "1"), ("a", "1"), ("b", "2")]:
        aws.sns.publish(TopicArn=topic, Message=body, MessageGroupId="g", MessageDeduplicationId=number)
    seen: list[str] = []
    while "b" not in seen:
        arrived = aws.bodies(queue, wait=20)
        assert arrived, f"nothing more within 20 s after {seen}"
        seen += arrived
    return sorted(seen) == ["a", "b"]


PROBES = {
    probe.__name__.replace("_", "-"): probe
    for probe in (
        *(credentials, queue_policy, attribute_count, attribute_names, group_id_characters, longest_delay),
        *(longest_visibility, shortest_retention, size_with_attributes, expired_visibility, receive_attempt),
        *(partial_release, purge_interval, dead_letter_sources, move_task, subscription_kinds, subscription_conflict),
        *(subscription_dead_letters, topic_characters, topic_batch_entries, fifo_topic_deduplication),
    )
}


@pytest.fixture(scope="module", params=EMULATORS)
def running(request: pytest.FixtureRequest) -> Iterator[Aws]:
    with AwsProcess(program=program_of(request.param)) as broker:
        yield Aws(request.param, broker.url)


@pytest.mark.parametrize("need", PROBES)
def test_a_gap_is_in_the_table_and_nothing_else_is(running: Aws, need: str) -> None:
    assert PROBES[need](running) == (running.emulator not in GAPS[need])


def test_every_line_of_the_table_is_probed_or_named_as_too_slow_for_it() -> None:
    assert GAPS.keys() == PROBES.keys() | UNPROBED
    assert not PROBES.keys() & UNPROBED
