"""SQS and SNS as a process of our own: MiniStack, or LocalStack as it was free (4.14)."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from mqkit.errors import ExtraMissing
from mqkit.testing.brokers.errors import BrokerAbsent
from mqkit.testing.brokers.process import HOST, BrokerProcess, free_ports

PROGRAM = "ministack"
CHECKOUT = Path(__file__).parents[3] / "build" / "brokers" / "ministack" / "bin" / PROGRAM  # by tools/prepare-brokers
REGION = "us-east-1"
ANSWER = 2.0  # seconds for the answer to one look; LocalStack's first ones take half a second

# What each emulator does not do as AWS does, by the name of what a test needs. What is not here, both do.
# Those that a probe can show in a moment are probed by mqkit's own tests, so that a release that closes a gap is noticed.
GAPS: Mapping[str, Mapping[str, str]] = {
    "credentials": {"ministack": "takes any", "localstack": "takes any"},
    "queue-policy": {"ministack": "SNS delivers without one", "localstack": "SNS delivers without one"},
    "attribute-count": {"ministack": "takes an eleventh", "localstack": "takes an eleventh"},
    "attribute-names": {"ministack": "takes any", "localstack": "takes two dots"},
    "group-id-characters": {"ministack": "takes any", "localstack": "takes a newline at the end"},
    "longest-delay": {"ministack": "takes 901 s", "localstack": "takes 901 s"},
    "longest-visibility": {"ministack": "takes 43,201 s", "localstack": "takes 43,201 s"},
    "shortest-retention": {"localstack": "takes 5 s"},
    "size-with-attributes": {"ministack": "counts the body only"},
    "expired-visibility": {"ministack": "extends it", "localstack": "extends it"},
    "receive-attempt": {"ministack": "ignores its id", "localstack": "ignores its id"},
    "partial-release": {"localstack": "hands out what follows a message in flight in its group"},
    "purge-interval": {"ministack": "purges at once again", "localstack": "purges at once again"},
    "dead-letter-sources": {"ministack": "not implemented"},
    "move-task": {"ministack": "not implemented"},
    "subscription-kinds": {"ministack": "subscribes a FIFO queue to a standard topic"},
    "subscription-conflict": {"ministack": "ignores other attributes of a second subscription"},
    "subscription-dead-letters": {"ministack": "loses what it cannot deliver"},
    "topic-characters": {"ministack": "takes any", "localstack": "takes a control character, and loses the message"},
    "topic-batch-entries": {
        "ministack": "takes a bad entry",
        "localstack": "refuses the whole batch for one bad entry",
    },
    "fifo-topic-deduplication": {"localstack": "not in front of a standard queue"},
    # Not probed, for they take a minute or more, many messages, or a network:
    "retention": {"ministack": "keeps messages for ever", "localstack": "keeps messages for ever"},
    "large-backlog": {"ministack": "looks at every message that waits at each receive, 3 ms for a thousand"},
    "in-flight-limit": {"ministack": "none", "localstack": "none"},
    "throttling": {"ministack": "none", "localstack": "none"},
    "encryption": {"ministack": "no KMS", "localstack": "no KMS"},
    "eventual-consistency": {
        "ministack": "all changes are there at once",
        "localstack": "all changes are there at once",
    },
}


class AwsProcess(BrokerProcess):
    """
    MiniStack starts in 1 s and an orderly stop takes 0.2 s; LocalStack takes 5 s and 4 s. No account, no network.

    It comes back with its data after `stop` if it is MiniStack, and empty after `kill`, as LocalStack always does.

    Args:
        program: A MiniStack other than the one that is found, or a LocalStack 4.14.
        start_timeout: Seconds.

    Raises:
        BrokerAbsent: ministack is not installed, or there is no `program`.
    """

    kind = "sqs"

    def __init__(self, *, program: Path | None = None, start_timeout: float = 60.0) -> None:
        found = shutil.which(program) if program else shutil.which(CHECKOUT) or shutil.which(PROGRAM)
        if found is None and program is not None:
            raise BrokerAbsent(f"there is no program {program}")
        if found is None:
            raise BrokerAbsent(
                f"{PROGRAM} is not installed (pipx install {PROGRAM}: it needs an environment of its own; "
                "in a checkout of mqkit, make brokers)"
            )
        self._program = os.path.abspath(found)  # it is started in a folder of its own
        super().__init__(start_timeout=start_timeout)
        self._state = self.folder / "state"

    def _take_ports(self) -> None:
        (self.port,) = free_ports(1)

    @property
    def url(self) -> str:
        return f"sqs://test:test@{HOST}:{self.port}/?region={REGION}&tls=false"

    def _start(self) -> None:
        self._spawn([self._program], self._environment())

    def _environment(self) -> dict[str, str]:
        # Those of AWS too: the emulators read them, and a profile of the machine is none of theirs.
        ours = ("AWS_", "LOCALSTACK_", "MINISTACK_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return inherited | {
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "SERVICES": "sqs,sns",
            "DOCKER_HOST": f"unix://{self.folder}/no-docker",  # MiniStack removes containers that look like its own
            # MiniStack
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": HOST,
            "PERSIST_STATE": "1",
            "STATE_DIR": str(self._state),
            # LocalStack, which listens on all addresses for an address of IPv4. This one is the loopback of IPv4 too.
            "GATEWAY_LISTEN": f"[::ffff:{HOST}]:{self.port}",
            "OVERRIDE_IN_DOCKER": "0",
            "FILESYSTEM_ROOT": str(self.folder / "localstack"),
            "EAGER_SERVICE_LOADING": "1",
            "DISABLE_EVENTS": "1",
            "SKIP_SSL_CERT_DOWNLOAD": "1",
            "DNS_ADDRESS": "0",
        }

    def _ready(self) -> bool:
        return sqs_answers(HOST, self.port) and sns_answers(HOST, self.port)

    def _end(self, number: signal.Signals) -> None:
        # It saves its state when it is told to end, and at no other time. What it saved before is out of date.
        shutil.rmtree(self._state, ignore_errors=True)
        super()._end(number)


def sqs_answers(host: str, port: int) -> bool:
    """Whether queues are listed, or somebody who knows SQS refuses it; nothing is signed."""
    headers = {"Content-Type": "application/x-amz-json-1.0", "X-Amz-Target": "AmazonSQS.ListQueues"}
    answer = _post(host, port, '{"QueueNamePrefix": "mqkit-asks"}', headers)
    try:
        return isinstance(json.loads(answer), dict)
    except ValueError:
        return False


def sns_answers(host: str, port: int) -> bool:
    """Whether topics are listed, or somebody who knows SNS refuses it; nothing is signed."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    return b"sns.amazonaws.com" in _post(host, port, "Action=ListTopics&Version=2010-03-31", headers)


def _post(host: str, port: int, body: str, headers: Mapping[str, str]) -> bytes:
    """The body of the answer; empty if there is none."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER)
    try:
        connection.request("POST", "/", body, dict(headers))
        return connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return b""
    finally:
        connection.close()


def aws_client(service: str, url: str, *, timeout: float = 30.0) -> Any:
    """
    boto3's client of `sqs` or `sns` at a URL like `sqs://key:secret@host:port/?region=...&tls=false`.

    Without a host it is AWS itself; without credentials or a region those that boto3 finds. It tries each call once.

    Args:
        timeout: Seconds for an answer, which must be longer than the wait of a receive.

    Raises:
        ExtraMissing: boto3 is not installed.
    """
    try:
        from boto3.session import Session
        from botocore.config import Config
    except ModuleNotFoundError as exc:
        raise ExtraMissing("tests on SQS need its driver: pip install 'mqkit[sqs]'") from exc
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    scheme = "http" if options.get("tls") == "false" else "https"
    # Proxies of the environment lead to AWS, not to what runs beside the tests.
    proxies: dict[str, str] | None = {} if parts.hostname else None
    return Session().client(
        service,
        region_name=options.get("region"),
        endpoint_url=f"{scheme}://{parts.netloc.rpartition('@')[2]}" if parts.hostname else None,
        aws_access_key_id=unquote(parts.username) if parts.username else None,
        aws_secret_access_key=unquote(parts.password) if parts.password else None,
        config=Config(connect_timeout=5, read_timeout=timeout, retries={"total_max_attempts": 1}, proxies=proxies),
    )
