"""The calls that mqkit sends by itself and those that botocore sends: the same answers, and the same errors."""

from __future__ import annotations

import logging
import re
import ssl
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest
import trustme
from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.exceptions import ReadTimeoutError, UnauthorizedSSOTokenError

from mqkit import Queue
from mqkit._url import Url, parse_options
from mqkit.backends.base import Address
from mqkit.backends.sqs import wire
from mqkit.backends.sqs.clients import Client, Clients
from mqkit.backends.sqs.desk import Desk
from mqkit.backends.sqs.options import Endpoint, SqsOptions
from mqkit.backends.sqs.places import Route
from mqkit.backends.sqs.sender import Sender
from mqkit.errors import ConfigError, Denied, Lost, MqkitError, NotFound, Unavailable
from mqkit.testing.brokers.aws import REGION, aws_client
from mqkit.testing.chaos import FaultProxy
from tests.sqs_server import Refusing, SqsHarness

pytestmark = pytest.mark.slow

KNOWN = {"x-amzn-requestid": "1"}
JSON = "application/x-amz-json-1.0"
CALLS: dict[str, dict[str, Any]] = {
    "send_message_batch": {"Entries": [{"Id": "0", "MessageBody": "word"}]},
    "receive_message": {"MaxNumberOfMessages": 10},
    "delete_message_batch": {"Entries": [{"Id": "0", "ReceiptHandle": "a"}]},
    "change_message_visibility_batch": {"Entries": [{"Id": "0", "ReceiptHandle": "a", "VisibilityTimeout": 0}]},
}

made: list[Client] = []


@pytest.fixture(autouse=True)
def close() -> Iterator[None]:
    yield
    while made:
        made.pop().close()


def both(text: str) -> tuple[Client, Client]:
    """A client that calls by itself, and one that leaves that to botocore."""
    url = Url.parse(text)
    options = parse_options(SqsOptions, url)
    clients = Clients(Endpoint.of(url, options), options)
    direct, plain = clients.make("sqs", connections=2), clients.make("sqs", connections=2)
    assert direct._direct.keys() == CALLS.keys()
    plain._direct = {}
    made.extend([direct, plain])
    return direct, plain


def at(port: int, *, timeout: float = 20.0, user: str = "key:hidden-secret@") -> str:
    return f"sqs://{user}127.0.0.1:{port}/?region={REGION}&tls=false&timeout={timeout}"


def same_failure(text: str, operation: str, url: str = "http://127.0.0.1/1/words") -> MqkitError:
    """How both ways fail, which is the same, down to what is behind it."""
    failures = []
    for client in both(text):
        with pytest.raises(MqkitError) as caught:
            client.call(operation, "trying", QueueUrl=url, **CALLS[operation])
        failures.append(caught.value)
    one, other = failures
    assert type(one) is type(other)
    assert _plain(one) == _plain(other)
    assert _ancestry(one.__cause__) == _ancestry(other.__cause__)
    assert "hidden-secret" not in repr([one, one.__cause__])
    return one


def _plain(error: MqkitError) -> str:
    return re.sub(r"0x[0-9a-f]+|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "~", str(error))


def _ancestry(error: BaseException | None) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


# -- what succeeds -----------------------------------------------------------------------------------------------------


def test_answers_are_those_of_botocore(harness: SqsHarness) -> None:
    sqs = aws_client("sqs", harness.url)
    answers = []
    for number, client in enumerate(both(harness.url)):
        url = sqs.create_queue(QueueName=f"{harness.unique('direct')}-{number}")["QueueUrl"]
        entries = [
            {
                "Id": str(place),
                "MessageBody": body,
                "MessageAttributes": {
                    "name": {"DataType": "String", "StringValue": body},
                    "octets": {"DataType": "Binary", "BinaryValue": b"\x00\xff" + body.encode()},
                },
            }
            for place, body in enumerate(["plain", 'quoted "\\" \t\r\n', "\u00e4 \u2028 \U0001f600 <&>", "x" * 60_000])
        ]
        sent = client.call("send_message_batch", "", QueueUrl=url, Entries=entries)
        received = client.call(
            "receive_message",
            "",
            QueueUrl=url,
            MaxNumberOfMessages=10,
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
            MessageAttributeNames=["All"],
        )
        receipts = [
            {"Id": str(place), "ReceiptHandle": each["ReceiptHandle"]}
            for place, each in enumerate(received["Messages"])
        ]
        hidden = client.call(
            "change_message_visibility_batch",
            "",
            QueueUrl=url,
            Entries=[{**receipt, "VisibilityTimeout": 60} for receipt in receipts],
        )
        wrong = {"Id": "wrong", "ReceiptHandle": "nobody-has-this"}
        deleted = client.call("delete_message_batch", "", QueueUrl=url, Entries=[*receipts, wrong])
        nothing = client.call("receive_message", "", QueueUrl=url)
        answers.append([_settled(each) for each in (sent, received, hidden, deleted, nothing)])
        last = received["Messages"][3]
        assert last["Body"] == "x" * 60_000
        assert last["MessageAttributes"]["octets"]["BinaryValue"] == b"\x00\xff" + b"x" * 60_000

    assert answers[0] == answers[1]


def _settled(reply: Any) -> Any:
    """Without what differs from call to call, and what mqkit does not read."""
    if isinstance(reply, list):
        return [_settled(each) for each in reply]
    if not isinstance(reply, dict):
        return reply
    anew = {"ResponseMetadata", "ReceiptHandle", "MessageId"}
    unread = {"MD5OfBody", "MD5OfMessageBody", "MD5OfMessageAttributes", "SenderFault"}
    if "Id" in reply:  # one of what was sent or settled
        unread.add("MessageId")
    return {
        name: type(value) if name in anew else _settled(value) for name, value in reply.items() if name not in unread
    }


def test_what_is_null_in_an_answer_is_not_there() -> None:
    body = b"""{"Successful": null, "New": 1,
        "Failed": [{"Id": "0", "Code": null, "Message": null}, {"Id": "1", "Code": "InternalError", "Message": null}],
        "Messages": [
            {"MessageId": "1", "ReceiptHandle": "2", "Body": "word", "Attributes": null, "MessageAttributes": null},
            {"MessageId": "3", "ReceiptHandle": "4", "Body": "word", "Attributes": {},
             "MessageAttributes": {"x": {"DataType": "Binary", "StringValue": null, "BinaryValue": "AP8="}}}
        ]}"""
    server = Refusing(status=200, body=body, headers=KNOWN)
    try:
        for client in both(at(server.port)):
            route = Route("queue", "http://127.0.0.1/1/words", "words")
            desk = Desk(route, client, client, Sender(client, pytest.fail), 30)

            arrivals = desk.poll(10, 0)
            errors = desk.delete(["2", "3", "4"])

            one, other = (
                wire.received(Address("queue", "words"), "words", arrival.raw, arrival.head, arrival.until)
                for arrival in arrivals
            )
            assert (one.id, one.body, one.headers, one.key) == ("1", b"word", {}, None)
            assert (other.id, other.lost, other.headers) == ("3", 0, {})
            assert other.native.message_attributes == {"x": {"DataType": "Binary", "BinaryValue": b"\x00\xff"}}
            assert wire.repack(arrivals[0].raw) == ("word", {}, 4)
            assert [type(error) for error in errors] == [Lost] * 3
    finally:
        server.close()


def test_an_empty_answer_of_aws_has_no_messages() -> None:
    server = Refusing(status=200, body=b"", headers=KNOWN)
    try:
        for client in both(at(server.port)):
            assert client.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words").keys() == {
                "ResponseMetadata"
            }
    finally:
        server.close()


# -- what fails --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", CALLS)
def test_a_queue_that_is_missing(harness: SqsHarness, operation: str) -> None:
    _, port = harness.endpoint()
    error = same_failure(harness.url, operation, f"http://127.0.0.1:{port}/000000000000/{harness.unique('missing')}")

    assert isinstance(error, NotFound)


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind", "expected"),
    [
        (403, b'{"__type": "InvalidClientTokenId", "message": "who?"}', KNOWN, JSON, Denied),
        (403, b'{"__type": "com.amazonaws.sqs#SignatureDoesNotMatch", "message": "no"}', KNOWN, JSON, Denied),
        (400, b'{"__type": "x#OverLimit", "Message": "many"}', {}, JSON, Unavailable),
        (
            400,
            b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "gone"}',
            {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender", **KNOWN},
            JSON,
            NotFound,
        ),
        (400, b'{"message": "something new"}', KNOWN, JSON, ConfigError),
        (400, b"[]", KNOWN, JSON, Lost),
        (400, b'{"__type": ["a"]}', KNOWN, JSON, Lost),
        (503, b'{"__type": "ServiceUnavailable", "message": "soon"}', KNOWN, JSON, Lost),
        (500, b"<html>broken</html>", {}, "text/html", Lost),
        (500, b"", {}, "text/html", Lost),
        (502, "<!DOCTYPE html>k\u00f6nnte".encode("latin-1"), {}, "text/html", Lost),
        (407, b"<html>log in</html>", {}, "text/html", ConfigError),
        (302, b"", {"Location": "http://portal.invalid/"}, "text/html", ConfigError),
        (200, b"<html>welcome</html>", {}, "text/html", Lost),
        (200, b"{}", {}, JSON, Lost),
        (200, b"", {}, JSON, Lost),
    ],
)
def test_a_refusal_and_what_is_none_of_aws(
    status: int, body: bytes, headers: dict[str, str], kind: str, expected: type[MqkitError]
) -> None:
    server = Refusing(status, body, kind, headers)
    try:
        error = same_failure(at(server.port), "send_message_batch")
    finally:
        server.close()

    assert isinstance(error, expected)


@pytest.mark.parametrize(
    "body",
    [
        b'{"Successful": [',
        b"[]",
        b"\xff",
        b'"text"',
        b'{"Successful": "0"}',
        b'{"Successful": [{}]}',
        b'{"Failed": {"Id": "0"}}',
        b'{"Failed": [{"Id": 0}]}',
        b'{"Successful": [{"Id": "\xff"}]}',
        b'{"New": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_an_answer_of_aws_that_cannot_be_read_says_nothing(body: bytes) -> None:
    server = Refusing(200, body, headers=KNOWN)
    try:
        direct, _ = both(at(server.port))
        with pytest.raises(Lost, match="cannot be read"):
            direct.call("send_message_batch", "", QueueUrl="http://127.0.0.1/1/words", **CALLS["send_message_batch"])
    finally:
        server.close()


@pytest.mark.parametrize(
    "message",
    [
        b'{"MessageId": "1", "ReceiptHandle": "2"}',
        b'{"MessageId": "1", "ReceiptHandle": "2", "Body": 3}',
        b'{"MessageId": "1", "ReceiptHandle": "2", "Body": "", "MessageAttributes": []}',
        b'{"MessageId": "1", "ReceiptHandle": "2", "Body": "", "MessageAttributes": {"x": {"BinaryValue": "A"}}}',
    ],
)
def test_messages_that_cannot_be_read_are_not_guessed(message: bytes) -> None:
    server = Refusing(200, b'{"Messages": [' + message + b"]}", headers=KNOWN)
    try:
        direct, _ = both(at(server.port))
        with pytest.raises(Lost, match="cannot be read"):
            direct.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words")
    finally:
        server.close()


def test_a_lost_reply_a_torn_one_and_a_refused_connection(harness: SqsHarness) -> None:
    url = aws_client("sqs", harness.url).create_queue(QueueName=harness.unique("lost"))["QueueUrl"]
    with FaultProxy(*harness.endpoint()) as proxy:
        text = at(proxy.port, timeout=1.0)
        proxy.freeze_replies()
        silent = same_failure(text, "send_message_batch", url)
        proxy.reset()
        proxy.thaw()

        failures = []
        for client in both(text):
            proxy.cut_replies_after(40)
            with pytest.raises(MqkitError) as caught:
                client.call("send_message_batch", "", QueueUrl=url, **CALLS["send_message_batch"])
            failures.append(type(caught.value))

        proxy.refuse()
        proxy.reset()
        absent = same_failure(text, "send_message_batch", url)

    assert isinstance(silent, Lost)
    assert failures == [Lost, Lost]
    assert isinstance(absent, Unavailable)


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    error = same_failure(at(9, user=""), "receive_message")

    assert isinstance(error, ConfigError)
    assert "needs credentials" in str(error)


# -- which way ---------------------------------------------------------------------------------------------------------


def test_only_a_certificate_that_the_environment_names_is_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = Refusing(200, b"{}", headers=KNOWN, tls=tls)
    text = at(server.port).replace("&tls=false", "")
    try:
        untrusted = same_failure(text, "receive_message")

        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        answers = [client.call("receive_message", "", QueueUrl="http://x/1/words") for client in both(text)]
    finally:
        server.close()

    assert isinstance(untrusted, Denied)
    assert [sorted(answer) for answer in answers] == [["ResponseMetadata"]] * 2
    assert len(server.asked) == 2


def test_calls_go_through_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Refusing(200, b"{}", headers=KNOWN)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", "http://sqs.invalid:4566")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    try:
        for client in both(f"sqs://?region={REGION}"):
            client.call("receive_message", "", QueueUrl="http://sqs.invalid:4566/1/words")
    finally:
        server.close()

    assert [headers["Host"] for headers, _ in server.asked] == ["sqs.invalid:4566"] * 2


# -- as whom -----------------------------------------------------------------------------------------------------------


def test_a_session_token_is_sent_and_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a/session+token==")
    server = Refusing(200, b"{}", headers=KNOWN)
    try:
        direct, _ = both(at(server.port, user=""))
        direct.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words")
    finally:
        server.close()

    [(headers, body)] = server.asked
    signed = headers["Authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert headers["X-Amz-Security-Token"] == "a/session+token=="
    assert {"host", "x-amz-security-token", "x-amz-target", "content-type"} <= set(signed)
    assert _signature(headers, signed, body) == headers["Authorization"].partition("Signature=")[2]


def _signature(headers: dict[str, str], signed: list[str], body: bytes) -> str:
    """As botocore makes it of what has arrived."""
    lower = {name.lower(): value for name, value in headers.items()}
    request = AWSRequest("POST", f"http://{headers['Host']}/", {name: lower[name] for name in signed}, body)
    request.context["timestamp"] = headers["X-Amz-Date"]
    signer = auth.SigV4Auth(Credentials("AKIDEXAMPLE", "hidden-secret", headers["X-Amz-Security-Token"]), "sqs", REGION)
    return str(signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request))


def test_credentials_that_were_refreshed_sign_the_next_call() -> None:
    lives = iter(["FIRST", "SECOND", "THIRD"])

    def fetch() -> dict[str, str]:
        name = next(lives)
        # The first run out at once.
        end = datetime.now(UTC) + (timedelta(seconds=1) if name == "FIRST" else timedelta(hours=2))
        return {
            "access_key": name,
            "secret_key": "hidden",
            "token": f"token-{name}",
            "expiry_time": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    server = Refusing(200, b"{}", headers=KNOWN)
    try:
        direct, _ = both(at(server.port))
        first = fetch()
        renewing = RefreshableCredentials(
            first["access_key"], first["secret_key"], first["token"],
            datetime.now(UTC) + timedelta(hours=2), fetch, "test",
        )  # fmt: skip
        direct._native._request_signer._credentials = renewing
        direct.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words")
        renewing._expiry_time = datetime.now(UTC) - timedelta(seconds=1)
        direct.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words")
    finally:
        server.close()

    assert [
        (headers["Authorization"].partition("Credential=")[2].partition("/")[0], headers["X-Amz-Security-Token"])
        for headers, _ in server.asked
    ] == [("FIRST", "token-FIRST"), ("SECOND", "token-SECOND")]


@pytest.mark.parametrize(
    "failure",
    [
        ValueError("the login has run out"),
        IndexError("the login has run out"),
        RuntimeError("the login has run out"),
        FileNotFoundError("the login has run out"),
        TimeoutExpired("the login has run out", 1.0),
        ReadTimeoutError(endpoint_url="the login has run out"),
        UnauthorizedSSOTokenError(),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_credentials_that_cannot_be_refreshed_send_nothing(failure: Exception) -> None:
    """They come from programs, files and services of the user's, and botocore lets through what happens there."""

    def fetch() -> dict[str, str]:
        raise failure

    server = Refusing(200, b"{}", headers=KNOWN)
    try:
        for client in both(at(server.port)):
            gone = datetime.now(UTC) - timedelta(seconds=1)
            client._credentials = RefreshableCredentials("A", "B", "C", gone, fetch, "test")
            with pytest.raises(Unavailable, match=f"credentials could not be fetched.*{type(failure).__name__}"):
                client.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words")
    finally:
        server.close()

    assert server.asked == []


@pytest.mark.parametrize("said", ["login expired", "[]", '{"Version": 1, "AccessKeyId": "A", "Expiration": "soon"}'])
def test_a_program_for_credentials_that_fails_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    answer, configuration = tmp_path / "answer", tmp_path / "config"
    configuration.write_text(f"[default]\ncredential_process = cat {answer}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(configuration))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    server = Refusing(200, b"{}", headers=KNOWN)
    try:
        answer.write_text(said)
        with pytest.raises(Unavailable, match="credentials"):
            both(at(server.port, user=""))

        answer.write_text('{"Version": 1, "AccessKeyId": "AKIDEXAMPLE", "SecretAccessKey": "hidden-secret"}')
        direct, _ = both(at(server.port, user=""))
        direct.call("receive_message", "", QueueUrl="http://127.0.0.1/1/words")
    finally:
        server.close()

    assert len(server.asked) == 1


# -- botocore's own way ------------------------------------------------------------------------------------------------


def test_messages_come_round_where_a_part_of_botocore_is_missing(
    harness: SqsHarness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(auth, "SigV4Auth")
    words, bus = Queue(harness.unique("words"), str), harness.bus()

    with caplog.at_level(logging.WARNING, "mqkit"):
        for number in range(10):
            bus.publish_soon(words, str(number))
        bus.flush()
        with bus.subscription(words) as messages:
            taken = harness.take(messages, 10)
            for delivery in taken:
                delivery.ack()

    assert {delivery.payload for delivery in taken} == {str(number) for number in range(10)}
    # A bus of an earlier test may still have something to say.
    errors = [vars(record)["error"] for record in caplog.records if record.message == "driver.changed"]
    assert errors
    assert all("SigV4Auth" in error for error in errors)


def test_nothing_of_a_call_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """In no log, no error and no representation: neither bodies nor what signs."""
    server, text = Refusing(403), "b" * 40
    try:
        with caplog.at_level(logging.DEBUG):
            direct, _ = both(at(server.port))
            logging.getLogger("botocore").setLevel(logging.WARNING)
            with pytest.raises(Denied) as caught:
                direct.call("send_message_batch", "", QueueUrl="x", Entries=[{"Id": "0", "MessageBody": text}])
    finally:
        server.close()

    [(headers, body)] = server.asked
    signature = headers["Authorization"].partition("Signature=")[2]
    assert text.encode() in body
    assert len(signature) == 64
    said = [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    call = direct._direct["send_message_batch"]
    shown = repr([said, traceback.format_exception(caught.value), call, call._form, direct])
    assert not [secret for secret in (text, "hidden-secret", signature) if secret in shown]
