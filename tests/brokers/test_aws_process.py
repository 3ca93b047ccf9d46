"""SQS and SNS as a process of our own: what a test can do to it, and what is left afterwards."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError

from mqkit.testing.brokers import KINDS, AwsProcess, Broker, BrokerAbsent, BrokerFailed, aws_client
from mqkit.testing.brokers import aws as aws_module
from mqkit.testing.brokers.aws import sns_answers, sqs_answers
from mqkit.testing.brokers.process import free_ports, listens
from mqkit.testing.brokers.providers import from_environment
from mqkit.testing.chaos import FaultProxy
from tests.aws_emulators import EMULATORS, program_of
from tests.brokers.processes import running, wait_until, wait_until_gone

pytestmark = pytest.mark.slow  # emulators are shared

SQS = KINDS["sqs"]


@pytest.fixture
def broker() -> Iterator[AwsProcess]:
    with AwsProcess(program=program_of("ministack")) as broker:
        yield broker


@pytest.fixture(scope="module", params=EMULATORS)
def either(request: pytest.FixtureRequest) -> Iterator[AwsProcess]:
    with AwsProcess(program=program_of(request.param)) as broker:
        yield broker


def send(url: str, *bodies: str, queue: str = "numbers") -> None:
    sqs = aws_client("sqs", url)
    address = sqs.create_queue(QueueName=queue)["QueueUrl"]
    for body in bodies:
        sqs.send_message(QueueUrl=address, MessageBody=body)


def take(url: str, count: int, queue: str = "numbers") -> list[str]:
    """So many messages, deleted."""
    sqs = aws_client("sqs", url)
    address = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    taken: list[str] = []
    while len(taken) < count:
        messages = sqs.receive_message(QueueUrl=address, MaxNumberOfMessages=10, WaitTimeSeconds=5).get("Messages", [])
        assert messages, f"only {taken}"
        for message in messages:
            sqs.delete_message(QueueUrl=address, ReceiptHandle=message["ReceiptHandle"])
            taken.append(message["Body"])
    return sorted(taken)


def queues(url: str) -> list[str]:
    return [queue.rpartition("/")[2] for queue in aws_client("sqs", url).list_queues().get("QueueUrls", [])]


def topics(url: str) -> list[str]:
    return [topic["TopicArn"].rpartition(":")[2] for topic in aws_client("sns", url).list_topics()["Topics"]]


def fan_out(url: str, prefix: str, groups: int) -> list[str]:
    """Queues that a topic sends to, all with names that begin so."""
    sqs, sns = aws_client("sqs", url), aws_client("sns", url)
    topic = sns.create_topic(Name=f"{prefix}orders")["TopicArn"]
    names = [f"{prefix}orders--{number}" for number in range(groups)]
    for name in names:
        queue = sqs.create_queue(QueueName=name)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        raw = {"RawMessageDelivery": "true"}
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes=raw)
    sns.publish(TopicArn=topic, Message="hello")
    return names


# -- both emulators ----------------------------------------------------------------------------------------------------


def test_messages_go_through_queues_and_topics(either: AwsProcess) -> None:
    send(either.url, *"abc")

    assert take(either.url, 3) == ["a", "b", "c"]
    assert [take(either.url, 1, queue) for queue in fan_out(either.url, "", groups=2)] == [["hello"], ["hello"]]


def test_a_place_is_a_prefix_whose_queues_topics_and_subscriptions_are_deleted(either: AwsProcess) -> None:
    broker = Broker(kind="sqs", url=either.url, management_url=None, provider="process", seconds=0.0)
    send(either.url, "kept", queue="mine")
    with SQS.place(broker, "mine") as url:
        fan_out(url, "mine-", groups=3)
        assert url == f"{either.url}&prefix=mine-"
        assert ("mine-orders" in topics(url), "mine-orders--2" in queues(url)) == (True, True)

    left = [name for name in queues(either.url) + topics(either.url) if name.startswith("mine-")]
    subscriptions = aws_client("sns", either.url).list_subscriptions()["Subscriptions"]

    assert left == []
    assert [one["Endpoint"] for one in subscriptions if ":mine-" in one["Endpoint"]] == []
    assert take(either.url, 1, queue="mine") == ["kept"]


def test_it_listens_on_loopback_only(either: AwsProcess) -> None:
    # All of 127.0.0.0/8 is this machine, so who listens on all addresses answers here too.
    assert (listens("127.0.0.1", either.port), listens("127.0.0.2", either.port)) == (True, False)


def test_a_killed_emulator_comes_back_empty_on_its_port(either: AwsProcess) -> None:
    url = either.url
    send(url, "lost")

    either.kill()
    either.start()

    assert (either.url, queues(url), topics(url)) == (url, [], [])


def test_a_frozen_emulator_accepts_and_does_not_answer_until_it_thaws(either: AwsProcess) -> None:
    send(either.url, "a")
    either.freeze()
    try:
        assert listens("127.0.0.1", either.port)
        with pytest.raises(ReadTimeoutError):
            aws_client("sqs", either.url, timeout=0.3).list_queues()
    finally:
        either.thaw()

    assert take(either.url, 1) == ["a"]


def test_a_proxy_before_it_breaks_connections(either: AwsProcess) -> None:
    with FaultProxy("127.0.0.1", either.port) as proxy:
        url = proxy.through(either.url)
        send(url, "a")
        assert proxy.request_bytes > 0

        proxy.refuse()
        proxy.reset()
        with pytest.raises(EndpointConnectionError):
            aws_client("sqs", url).list_queues()
        proxy.accept()

        assert take(url, 1) == ["a"]


# -- MiniStack ---------------------------------------------------------------------------------------------------------


def test_a_restart_is_a_new_process_with_the_same_data(broker: AwsProcess) -> None:
    first = broker.pid
    send(broker.url, *"abc")

    broker.restart()

    assert broker.pid != first
    assert take(broker.url, 3) == ["a", "b", "c"]


def test_what_was_taken_after_a_restart_does_not_come_back_with_a_kill(broker: AwsProcess) -> None:
    send(broker.url, "a")
    broker.restart()
    assert take(broker.url, 1) == ["a"]

    broker.kill()
    broker.start()

    assert queues(broker.url) == []


def test_a_stopped_emulator_refuses_connections(broker: AwsProcess) -> None:
    broker.stop()

    assert (broker.running, sqs_answers("127.0.0.1", broker.port)) == (False, False)
    with pytest.raises(EndpointConnectionError):
        aws_client("sqs", broker.url).list_queues()


def test_a_frozen_emulator_can_be_stopped(broker: AwsProcess) -> None:
    broker.freeze()

    broker.stop()

    assert not broker.running


def test_settings_of_aws_and_of_proxies_do_not_lead_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://aws.invalid")
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")

    with AwsProcess(program=program_of("ministack")) as broker:
        send(broker.url, "a")

        assert take(broker.url, 1) == ["a"]
        assert "Ready" in broker.log_tail()


def test_an_exit_at_start_is_an_error_with_the_log(tmp_path: Path) -> None:
    program = tmp_path / "ministack"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    broker = AwsProcess(program=program)
    try:
        with pytest.raises(BrokerFailed, match=r"sqs ended with status 3 while it started(?s:.)*out of luck"):
            broker.start()
    finally:
        broker.close()


def test_a_program_may_be_named_from_where_the_test_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of("ministack")
    monkeypatch.chdir(program.parent.parent)

    with AwsProcess(program=Path("bin/ministack")) as broker:
        assert sqs_answers("127.0.0.1", broker.port)


def test_an_emulator_that_is_not_installed_is_absent_and_says_what_would_bring_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(aws_module, "CHECKOUT", tmp_path / "ministack")

    with pytest.raises(BrokerAbsent, match=r"ministack is not installed \(pipx install ministack.*make brokers\)"):
        AwsProcess()


def test_a_program_that_is_named_and_not_there_is_absent(tmp_path: Path) -> None:
    with pytest.raises(BrokerAbsent, match=f"there is no program {tmp_path}/localstack"):
        AwsProcess(program=tmp_path / "localstack")


def test_nothing_is_left_after_close(broker: AwsProcess) -> None:
    group = broker.pid

    broker.close()
    broker.close()

    assert not broker.folder.exists()
    wait_until_gone(group)


@pytest.mark.parametrize("emulator", EMULATORS)
def test_nothing_is_left_when_the_run_is_killed(emulator: str) -> None:
    program = f"""
import threading
from pathlib import Path
from mqkit.testing.brokers import AwsProcess
broker = AwsProcess(program=Path({str(program_of(emulator))!r})).start()
print(broker.pid, broker.folder, flush=True)
threading.Event().wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        group, folder = run.stdout.readline().split()
        assert running(int(group))

        run.send_signal(signal.SIGKILL)

    wait_until(lambda: not Path(folder).exists())
    wait_until_gone(int(group))


# -- whether SQS is served ---------------------------------------------------------------------------------------------


def test_who_is_not_sqs_does_not_answer_as_sqs(tmp_path: Path) -> None:
    (nobody,) = free_ports(1)
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as web:
        assert web.stdout is not None
        port = int(web.stdout.readline().split(" port ")[1].split()[0])
        answers = [sqs_answers("127.0.0.1", port), sns_answers("127.0.0.1", port)]
        web.kill()

    assert [*answers, sqs_answers("127.0.0.1", nobody)] == [False, False, False]


def test_one_of_the_environment_is_asked_where_it_is_plain_and_aws_itself_is_not(broker: AwsProcess) -> None:
    found = from_environment(SQS, {"MQKIT_TEST_SQS_URL": broker.url}).broker
    aws = from_environment(SQS, {"MQKIT_TEST_SQS_URL": "sqs://?region=eu-central-1"}).broker

    assert (found.url, found.management_url) == (broker.url, None)
    assert aws_client("sqs", aws.url).meta.endpoint_url == "https://sqs.eu-central-1.amazonaws.com"
