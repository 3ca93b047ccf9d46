"""What the suite on SQS and SNS has in its hands: an emulator of its own, and the harness."""

from __future__ import annotations

import itertools
import json
import ssl
import threading
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlencode

from mqkit.backends.base import Address
from mqkit.backends.sqs.direct import REQUEST_ID
from mqkit.backends.sqs.names import Names
from mqkit.backends.sqs.wire import Native
from mqkit.destinations import Destination
from mqkit.message import Message
from mqkit.testing.brokers.aws import GAPS, REGION, AwsProcess, aws_client
from mqkit.testing.conformance import Harness
from tests.aws_emulators import program_of

UNKNOWN_KEY = b'{"__type": "InvalidClientTokenId", "message": "The security token included in the request is invalid."}'
_numbers = itertools.count(1)


def running_server(emulator: str) -> Iterator[AwsProcess]:
    with AwsProcess(program=program_of(emulator)) as server:
        yield server


class SqsHarness(Harness):
    """A foreign client is boto3; each case has a prefix of its own."""

    def __init__(self, server: AwsProcess, emulator: str) -> None:
        self._server = server
        self._emulator = emulator
        prefix = f"case{next(_numbers)}-"
        self._names_of_aws = Names(prefix)
        self._refusing: Refusing | None = None
        self._seen: dict[str, bytes] = {}  # by message id, as a foreign client saw them
        # A delay is a second at least, and most calls wait for an emulator that has one core.
        super().__init__(f"{server.url}&{urlencode({'prefix': prefix, 'wait': 1})}", scale=3.0)
        self._sqs = aws_client("sqs", server.url)
        self._sns = aws_client("sns", server.url)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        attributes = {name: {"DataType": "String", "StringValue": value} for name, value in headers.items()}
        if destination.kind == "topic":
            arn = self._arn(self._names_of_aws.topic(destination.address, fifo=destination.key is not None))
            self._sns.publish(TopicArn=arn, Message=body.decode(), MessageAttributes=attributes)
        else:
            self._sqs.send_message(
                QueueUrl=self._url(destination), MessageBody=body.decode(), MessageAttributes=attributes
            )

    def send_native(self, destination: Destination[Any], body: str, attributes: dict[str, Any]) -> None:
        """To a queue, with attributes as AWS writes them."""
        self._sqs.send_message(QueueUrl=self._url(destination), MessageBody=body, MessageAttributes=attributes)

    def send_to_the_delayed(self, destination: Destination[Any], body: str) -> None:
        """Where messages for a topic wait."""
        url = self._sqs.get_queue_url(QueueName=self._names_of_aws.delay(destination.address))["QueueUrl"]
        self._sqs.send_message(QueueUrl=url, MessageBody=body)

    def tag_all(self, tags: dict[str, str]) -> None:
        """Of every queue that is ours."""
        for url in self._sqs.list_queues(QueueNamePrefix=self._names_of_aws.prefix).get("QueueUrls", []):
            self._sqs.tag_queue(QueueUrl=url, Tags=tags)

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        return [_octets(message) for message in self._read(destination)]

    def find_native(self, destination: Destination[Any], native: Any) -> bytes:
        assert isinstance(native, Native)
        if native.message_id not in self._seen:
            self._seen.update({message["MessageId"]: _octets(message) for message in self._read(destination)})
        return self._seen[native.message_id]

    @property
    def foreign_body(self) -> bytes:
        return "any text: <&> \u00e4 \u2028 \U0001f600 \t\r\n".encode()

    def subscriptions(self, name: str) -> list[str]:
        """Of a topic without order: the ARNs of the queues behind it."""
        arn = self._arn(self._names_of_aws.topic(Address("topic", name), fifo=False))
        found = self._sns.list_subscriptions_by_topic(TopicArn=arn)["Subscriptions"]
        return [str(subscription["Endpoint"]) for subscription in found]

    def redrive(self, destination: Destination[Any], receives: int) -> None:
        """Give a queue a redrive policy of AWS's own, as its owner might."""
        dead = self._sqs.create_queue(QueueName=f"{destination.name}-of-its-owner")["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": receives})
        self._sqs.set_queue_attributes(QueueUrl=self._url(destination), Attributes={"RedrivePolicy": policy})

    def set_policy(self, topic: Destination[Any], group: str, policy: str) -> None:
        """Of a group's queue."""
        self._sqs.set_queue_attributes(QueueUrl=self._group_url(topic, group), Attributes={"Policy": policy})

    def policy(self, topic: Destination[Any], group: str) -> dict[str, Any]:
        found = self._sqs.get_queue_attributes(QueueUrl=self._group_url(topic, group), AttributeNames=["Policy"])
        document: dict[str, Any] = json.loads(found["Attributes"]["Policy"])
        return document

    def _group_url(self, topic: Destination[Any], group: str) -> str:
        native = self._names_of_aws.queue(topic.address._replace(group=group), fifo=topic.key is not None)
        return str(self._sqs.get_queue_url(QueueName=native)["QueueUrl"])

    @property
    def backlog(self) -> int:
        return 10_000 if self._emulator in GAPS["large-backlog"] else super().backlog

    def _read(self, destination: Destination[Any]) -> list[dict[str, Any]]:
        """All that waits."""
        found: list[dict[str, Any]] = []
        asked = {"MaxNumberOfMessages": 10, "WaitTimeSeconds": 1, "MessageAttributeNames": ["All"]}
        while messages := self._sqs.receive_message(QueueUrl=self._url(destination), **asked).get("Messages"):
            found += messages
        return found

    def fifo_of(self, message: Message) -> tuple[str, str]:
        attributes = message.native.attributes
        return attributes["MessageGroupId"], attributes["MessageDeduplicationId"]

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Frozen: an emulator that is killed has lost its messages."""
        self._server.freeze()
        try:
            yield
        finally:
            self._server.thaw()

    def denied_url(self) -> str:
        """Of a server that refuses as AWS does: emulators take any credentials."""
        if self._refusing is None:
            self._refusing = Refusing()
        return f"sqs://somebody:wrong@127.0.0.1:{self._refusing.port}/?region={REGION}&tls=false"

    def close(self) -> None:
        super().close()
        if self._refusing is not None:
            self._refusing.close()

    @property
    def system(self) -> str:
        return f"sqs ({self._emulator})"

    def endpoint(self) -> tuple[str, int]:
        return "127.0.0.1", self._server.port

    @property
    def forgets_attempts(self) -> bool:
        return True

    def driver(self) -> tuple[str, str]:
        return "botocore", "sqs"

    def _url(self, destination: Destination[Any]) -> str:
        native = self._names_of_aws.queue(destination.address, fifo=destination.key is not None)
        return str(self._sqs.get_queue_url(QueueName=native)["QueueUrl"])

    def _arn(self, native: str) -> str:
        return str(self._sns.create_topic(Name=native)["TopicArn"])


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str]


class HttpServer:
    """Answers each call by a function of its headers and its body."""

    def __init__(self, answer: Callable[[HTTPMessage, bytes], Answer], tls: ssl.SSLContext | None = None) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                status, body, headers = answer(
                    self.headers, self.rfile.read(int(self.headers.get("Content-Length", 0)))
                )
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Refusing(HttpServer):
    """
    Answers every call as AWS answers a key it does not know, or with something else, and remembers what it was asked: the
    headers and the body.
    """

    def __init__(
        self,
        status: int = 403,
        body: bytes = UNKNOWN_KEY,
        kind: str = "application/x-amz-json-1.0",
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.asked: list[tuple[dict[str, str], bytes]] = []
        always = Answer(status, body, {"Content-Type": kind, **(headers or {})})

        def answer(given: HTTPMessage, asked: bytes) -> Answer:
            self.asked.append((dict(given), asked))
            return always

        super().__init__(answer, tls)


class Faltering(HttpServer):
    """
    Stands before an emulator and gives the first answers to each operation itself, as AWS does when it cannot just now.

    Args:
        times: So often for each operation.
        code: Of the error.
        operations: At which it falters; none for all.
        after: Whether the emulator has done then what it was asked for.
        meanwhile: Happens before the first of these answers is given.
    """

    def __init__(
        self,
        server: tuple[str, int],
        times: int,
        status: int,
        code: str,
        *,
        operations: Collection[str] = (),
        after: bool = False,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.asked: Counter[str] = Counter()  # by operation, as AWS names it
        lock = threading.Lock()

        def answer(headers: HTTPMessage, body: bytes) -> Answer:
            operation = _operation(headers, body)
            with lock:
                self.asked[operation] += 1
                first = self.asked[operation] == 1
                falters = self.asked[operation] <= times and (not operations or operation in operations)
            if not falters:
                return _forward(server, headers, body)
            if after:
                _forward(server, headers, body)
            if first:
                meanwhile()
            return _error(headers, status, code)

        super().__init__(answer)


def _operation(headers: HTTPMessage, body: bytes) -> str:
    """SQS names it in a header, SNS in a form."""
    target = headers.get("X-Amz-Target")
    return target.rpartition(".")[2] if target else parse_qs(body.decode())["Action"][0]


def _forward(server: tuple[str, int], headers: HTTPMessage, body: bytes) -> Answer:
    connection = HTTPConnection(*server, timeout=30.0)
    try:
        connection.request("POST", "/", body, dict(headers))
        answer = connection.getresponse()
        kept = {name: value for name, value in answer.headers.items() if name.lower() in ("content-type", REQUEST_ID)}
        return Answer(answer.status, answer.read(), kept)
    finally:
        connection.close()


def _error(headers: HTTPMessage, status: int, code: str) -> Answer:
    if "X-Amz-Target" in headers:
        return Answer(status, json.dumps({"__type": code, "message": "soon"}).encode(), {REQUEST_ID: "1"})
    body = f"<ErrorResponse><Error><Code>{code}</Code><Message>soon</Message></Error></ErrorResponse>"
    return Answer(status, body.encode(), {"Content-Type": "text/xml", REQUEST_ID: "1"})


def _octets(message: dict[str, Any]) -> bytes:
    """As docs/backends/sqs.md tells a foreign client."""
    head = json.loads(message.get("MessageAttributes", {}).get("mqkit", {}).get("StringValue", "{}"))
    if head.get("encoding") == "base64":
        return b64decode(message["Body"]) if message["Body"] != "=" else b""
    return str(message["Body"]).encode()
