"""What is decided without a server: batches, lanes, leases, policies, errors, options."""

from __future__ import annotations

import inspect
import json

import pytest
from botocore import exceptions as native

from mqkit._url import Url, parse_options
from mqkit.backends.base import Address, Received
from mqkit.backends.sqs import policy
from mqkit.backends.sqs.errors import (
    ERRORS,
    may_pass,
    of_code,
    publish_error,
    translate,
    without_credentials,
)
from mqkit.backends.sqs.holdings import Held, Holdings, by_group
from mqkit.backends.sqs.options import Endpoint, SqsOptions
from mqkit.backends.sqs.outbox import Outbox, Parcel
from mqkit.backends.sqs.places import Route
from mqkit.backends.sqs.sender import Letter, answers, batches
from mqkit.backends.sqs.wire import Packed
from mqkit.envelope import Envelope
from mqkit.errors import (
    ConfigError,
    Denied,
    LeaseLost,
    Lost,
    MqkitError,
    NotFound,
    PublishFailed,
    PublishUnknown,
    Unavailable,
)

PLAIN = Route("queue", "https://q/plain", "plain")
FIFO = Route("queue", "https://q/f.fifo", "f.fifo", True)
TOPIC = Route("topic", "arn:aws:sns:eu:1:t", "t")


def letter(route: Route = PLAIN, size: int = 10, group: str = "") -> Letter:
    return Letter(route, Packed("x", {}, size), 0, group, "d" if group else "")


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_call_takes_ten_of_one_route() -> None:
    cut = batches([letter() for _ in range(25)] + [letter(TOPIC)])

    assert [len(batch) for batch in cut] == [10, 10, 5, 1]


@pytest.mark.parametrize(("route", "most"), [(PLAIN, 1 << 20), (TOPIC, 1 << 18)])
def test_a_call_takes_so_many_bytes(route: Route, most: int) -> None:
    cut = batches([letter(route, most // 2), letter(route, most // 2), letter(route, 1)])

    assert [len(batch) for batch in cut] == [2, 1]


def parcels(*groups: str) -> list[Parcel]:
    return [Parcel(letter(FIFO, group=group), number) for number, group in enumerate(groups)]


def test_an_ordering_group_is_under_way_once() -> None:
    outbox = Outbox()
    for parcel in parcels(*"a" * 12, "b", "a"):
        outbox.put(parcel)

    first, second, third = outbox.take(), outbox.take(), outbox.take()

    assert [parcel.message for parcel in first] == list(range(10))
    assert [parcel.message for parcel in second] == [12]
    assert third == []
    outbox.answered(first)
    assert [parcel.message for parcel in outbox.take()] == [10, 11, 13]


def test_what_comes_while_its_group_is_under_way_waits() -> None:
    outbox = Outbox()
    one, two = parcels("a", "a")
    outbox.put(one)
    batch = outbox.take()

    outbox.put(two)

    assert outbox.take() == []
    outbox.answered(batch)
    assert outbox.take() == [two]


def test_without_order_calls_go_side_by_side() -> None:
    outbox = Outbox()
    for number in range(25):
        outbox.put(Parcel(letter(), number))

    assert [len(outbox.take()) for _ in range(4)] == [10, 10, 5, 0]


def test_what_was_not_taken_is_given_back() -> None:
    outbox = Outbox()
    for parcel in parcels("a", "b", "a"):
        outbox.put(parcel)
    taken = outbox.take()

    outbox.put(parcels("c")[0])

    assert len(taken) == 3
    assert [parcel.letter.group for parcel in outbox.clear()] == ["c"]
    assert len(outbox) == 0


# -- leases ------------------------------------------------------------------------------------------------------------


def held(until: float, group: str = "") -> Held:
    received = Received(1, Address("queue", "q"), "m", b"", None, {}, Envelope())
    return Held("r", group, received, until)


def test_a_lease_is_renewed_at_its_half_together_with_those_that_are_nearly_due() -> None:
    holdings = Holdings(30.0)
    due, nearly, fresh = held(114.0), held(118.0), held(129.0)
    for one in (due, nearly, fresh):
        holdings.add(one)

    assert holdings.renewable(98.0) == []
    assert holdings.renewable(100.0) == [due, nearly]


def test_nothing_is_done_with_a_lease_in_its_last_two_seconds() -> None:
    holdings = Holdings(30.0)
    one = held(130.0)
    holdings.add(one)

    assert holdings.expired(127.9, ordered=False) == []
    assert holdings.expired(128.0, ordered=False) == [one]
    assert not holdings.has(one)


def test_with_one_of_an_ordering_group_all_of_it_is_gone() -> None:
    holdings = Holdings(30.0)
    first, second, other = held(100.0, "a"), held(130.0, "a"), held(130.0, "b")
    for one in (first, second, other):
        holdings.add(one)

    assert holdings.expired(100.0, ordered=True) == [first, second]
    assert holdings.all() == [other]


def test_an_ordering_group_is_given_back_in_one_call() -> None:
    groups = [held(1.0, group) for group in "aaaabbbbcccc"]

    batches = by_group(groups, 10)

    assert [[one.group for one in batch] for batch in batches] == [list("aaaabbbb"), list("cccc")]
    assert [len(batch) for batch in by_group([held(1.0) for _ in range(12)], 10)] == [10, 2]


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_policy_keeps_what_others_have_put_into_it() -> None:
    theirs = {"Sid": "theirs", "Effect": "Deny", "Principal": "*", "Action": "sqs:*"}
    before = json.dumps({"Version": "2012-10-17", "Id": "x", "Statement": theirs})

    after = policy.permitting(policy.permitting(before, "queue", "topic 1"), "queue", "topic 2")

    assert json.loads(after)["Statement"][0] == theirs
    assert [policy.permits(after, "queue", topic) for topic in ("topic 1", "topic 2", "topic 3")] == [True, True, False]


def test_adding_twice_adds_once() -> None:
    once = policy.permitting("", "queue", "topic")

    assert policy.permitting(once, "queue", "topic") == once


def test_our_statement_lets_this_topic_send_and_nothing_else() -> None:
    [statement] = json.loads(policy.permitting("", "queue", "topic"))["Statement"]

    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    assert (statement["Action"], statement["Resource"]) == ("sqs:SendMessage", "queue")
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": "topic"}}


# -- errors ------------------------------------------------------------------------------------------------------------


def test_every_exception_of_the_driver_has_a_meaning() -> None:
    kinds = [kind for _, kind in inspect.getmembers(native, inspect.isclass) if issubclass(kind, native.BotoCoreError)]

    assert [kind for kind in kinds if not any(issubclass(kind, known) for known, *_ in ERRORS)] == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (native.EndpointConnectionError(endpoint_url="x"), Unavailable),
        (native.ConnectTimeoutError(endpoint_url="x"), Unavailable),
        (native.ReadTimeoutError(endpoint_url="x"), Lost),
        (native.ConnectionClosedError(endpoint_url="x"), Lost),
        (native.SSLError(endpoint_url="x", error="x"), Denied),
        (native.NoCredentialsError(), ConfigError),
        (native.NoRegionError(), ConfigError),
        (KeyError("x"), Lost),
    ],
)
def test_what_had_no_effect_is_told_from_what_nobody_knows(error: BaseException, kind: type[MqkitError]) -> None:
    assert type(translate(error, "SQS", "sending")) is kind


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AWS.SimpleQueueService.NonExistentQueue", 400, NotFound),
        ("QueueDoesNotExist", 400, NotFound),
        ("InvalidClientTokenId", 403, Denied),
        ("SomethingNew", 403, Denied),
        ("RequestThrottled", 400, Unavailable),
        ("KMSThrottling", 400, Unavailable),
        ("KmsThrottled", 400, Unavailable),
        ("KMSAccessDenied", 400, Denied),
        ("KmsOptInRequired", 400, Denied),
        ("SomethingNew", 503, Lost),
        ("502", 502, Lost),
        ("404", 404, Lost),
        ("ReceiptHandleIsInvalid", 0, LeaseLost),
        ("SomethingNew", 400, ConfigError),
    ],
)
def test_codes_have_a_meaning(code: str, status: int, kind: type[MqkitError]) -> None:
    assert type(of_code(code, "text", "SQS", "sending", status=status)) is kind


@pytest.mark.parametrize(
    ("code", "status", "again"),
    [
        ("InternalError", 500, True),
        ("502", 502, True),
        ("Throttling", 400, True),
        ("ThrottledException", 429, True),
        ("AWS.SimpleQueueService.RequestThrottled", 403, True),
        ("AWS.SimpleQueueService.NonExistentQueue", 400, False),
        ("AccessDenied", 403, False),
        ("404", 404, False),
        ("SomethingNew", 400, False),
    ],
)
def test_what_may_pass_is_told_from_what_stays(code: str, status: int, again: bool) -> None:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    assert may_pass(translated(native.ClientError(answer, "ListTopics"))) is again


@pytest.mark.parametrize(
    "error",
    [
        native.ReadTimeoutError(endpoint_url="x"),
        native.EndpointConnectionError(endpoint_url="x"),
        native.ConnectionClosedError(endpoint_url="x"),
        native.NoCredentialsError(),
        ValueError("x"),
    ],
)
def test_what_is_no_answer_does_not_pass(error: Exception) -> None:
    assert not may_pass(translated(error))


@pytest.mark.parametrize(
    ("code", "status", "again"),
    [("502", 502, True), ("Throttling", 400, True), ("IDPCommunicationError", 400, True), ("AccessDenied", 403, False)],
)
def test_credentials_that_cannot_be_given_just_now_may_pass_too(code: str, status: int, again: bool) -> None:
    cause = native.ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "AssumeRole")
    error = without_credentials(cause, "SQS", "looking")
    error.__cause__ = cause

    assert may_pass(error) is again


def translated(error: Exception) -> MqkitError:
    """As a client raises it."""
    ours = translate(error, "SQS", "looking")
    ours.__cause__ = error
    return ours


@pytest.mark.parametrize(
    "reason",
    [
        "The receipt handle has expired.",
        "Message does not exist or is not available for visibility timeout change.",
        "Total VisibilityTimeout for the message is beyond the limit [43200 seconds].",
    ],
)
def test_a_receipt_that_is_good_for_nothing_is_a_lost_lease(reason: str) -> None:
    error = of_code("InvalidParameterValue", f"Value x is invalid. Reason: {reason}", "SQS", "x")

    assert type(error) is LeaseLost


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDenied", 403, Denied),
        ("ResourceNotFoundException", 404, Denied),
        ("RegionDisabledException", 403, Denied),
        ("IDPCommunicationError", 400, Unavailable),
        ("Throttling", 400, Unavailable),
        ("InternalFailure", 500, Unavailable),
        ("502", 502, Unavailable),
    ],
)
def test_who_refuses_credentials_says_nothing_of_a_queue_or_a_message(
    code: str, status: int, kind: type[MqkitError]
) -> None:
    answer = {"Error": {"Code": code, "Message": "text"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = without_credentials(native.ClientError(answer, "AssumeRole"), "SQS", "sending")

    assert type(error) is kind
    assert "AssumeRole" in str(error)


def test_a_publish_says_whether_it_may_be_there() -> None:
    assert type(publish_error(Lost("x"))) is PublishUnknown
    assert type(publish_error(Unavailable("x"))) is PublishFailed


def test_an_entry_that_is_in_neither_list_is_unknown() -> None:
    reply = {
        "Successful": [{"Id": "1", "MessageId": "m"}],
        "Failed": [{"Id": "2", "Code": "InternalError", "SenderFault": False}],
    }

    found = answers(reply, 3, "SQS", "sending")

    assert [type(error) for error in found] == [Lost, type(None), Lost]


@pytest.mark.parametrize("stranger", ["3", "-1", "", "01", "x"])
def test_an_answer_about_what_was_not_asked_says_nothing_of_what_was(stranger: str) -> None:
    found = answers({"Successful": [{"Id": stranger}], "Failed": [{"Id": stranger, "Code": "x"}]}, 3, "SQS", "sending")

    assert [type(error) for error in found] == [Lost] * 3


# -- options -----------------------------------------------------------------------------------------------------------


def endpoint(text: str) -> Endpoint:
    url = Url.parse(text)
    return Endpoint.of(url, parse_options(SqsOptions, url))


def test_without_a_host_it_is_aws_itself_with_its_own_chain() -> None:
    assert endpoint("sqs://").arguments() == {
        "endpoint_url": None, "region_name": None, "aws_access_key_id": None, "aws_secret_access_key": None,
    }  # fmt: skip


def test_a_host_is_spoken_to_as_the_url_says() -> None:
    found = endpoint("sqs://key:s%2Fecret@localhost:4566/?region=us-east-1&tls=false")

    assert found.arguments() == {
        "endpoint_url": "http://localhost:4566", "region_name": "us-east-1",
        "aws_access_key_id": "key", "aws_secret_access_key": "s/ecret",
    }  # fmt: skip
    assert "ecret" not in repr(found) + str(found)


@pytest.mark.parametrize(
    "text",
    [
        "sqs://key@host",
        "sqs://?tls=false",
        "sqs://host/queue",
        "sqs://?lease=0",
        "sqs://?wait=21",
        "sqs://?hop=901",
        "sqs://?max_body=2000000",
        "sqs://?regoin=x",
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        endpoint(text)


@pytest.mark.parametrize(("lease", "wait"), [(30.0, 20), (12.0, 8), (0.5, 3), (3600.0, 20)])
def test_a_poll_leaves_a_third_of_the_lease(lease: float, wait: int) -> None:
    assert SqsOptions(lease=lease).patience == wait
