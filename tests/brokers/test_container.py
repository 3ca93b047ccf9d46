"""A broker in a container: the images of tools/build-broker-images, and whose containers may be removed."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import docker
import docker.errors
import pika
import pytest
import redis

from mqkit.testing.brokers import KINDS, BrokerAbsent, BrokerContainer, BrokerFailed, aws_client
from mqkit.testing.brokers.container import OWNER, abandoned, daemon_is_here, owner, sweep
from mqkit.testing.brokers.kafka import kafka_answers
from mqkit.testing.brokers.providers import provide
from tests.brokers.images import client, image_of
from tests.brokers.kafkas import VERSIONS, bodies, groups, make_topic, publish, publish_in_transaction, topics
from tests.brokers.processes import wait_until

__all__ = ["client"]
pytest_plugins = ["pytester"]


@pytest.fixture
def image(request: pytest.FixtureRequest, client: docker.DockerClient) -> str:
    return image_of(client, request.param)


def gone(client: docker.DockerClient, container: str) -> bool:
    return container not in {one.id for one in client.containers.list(all=True, ignore_removed=True)}


@pytest.mark.slow
@pytest.mark.parametrize(("image", "version"), [("redis:8", "8."), ("redis:7", "7.")], indirect=["image"])
def test_redis_serves_on_loopback_and_is_removed(client: docker.DockerClient, image: str, version: str) -> None:
    running = BrokerContainer(KINDS["redis"], image)
    try:
        container = running._container.get_container_id()
        with redis.Redis.from_url(running.broker.url, socket_timeout=5.0) as one:
            assert one.info("server")["redis_version"].startswith(version)
        assert "Ready to accept connections" in running.log_tail()
        assert running.broker.provider == f"container {image}"
        bound = client.containers.get(container).attrs["HostConfig"]["PortBindings"]["6379/tcp"]
        assert [one["HostIp"] for one in bound] == ["127.0.0.1"]
    finally:
        running.close()
        running.close()

    assert gone(client, container)


@pytest.mark.slow
@pytest.mark.parametrize(("image", "version"), [("rabbitmq:4", "4."), ("rabbitmq:3", "3.")], indirect=["image"])
def test_rabbitmq_gives_each_test_a_vhost(image: str, version: str) -> None:
    running = BrokerContainer(KINDS["rabbitmq"], image)
    try:
        with KINDS["rabbitmq"].place(running.broker, "mine") as url:
            parameters = pika.URLParameters(url.partition("?")[0])
            with pika.BlockingConnection(parameters) as connection:
                assert connection._impl.server_properties["version"].startswith(version)
                with connection.channel() as channel:
                    channel.queue_declare("numbers", durable=True, arguments={"x-queue-type": "quorum"})
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(parameters)
    finally:
        running.close()


@pytest.mark.slow
@pytest.mark.parametrize(("image", "version"), [(f"kafka:{one}", one) for one in VERSIONS], indirect=["image"])
def test_kafka_tells_clients_the_port_of_this_machine_and_reaches_itself(
    client: docker.DockerClient, image: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQKIT_TEST_KAFKA_IMAGE", image)
    numbers = [b"%d" % number for number in range(100)]
    running = provide("kafka", "container")
    try:
        with KINDS["kafka"].place(running.broker, "mine") as url:
            make_topic(url, "mine.numbers")
            publish(url, "mine.numbers", numbers)
            publish_in_transaction(url, "mine.numbers", numbers)
            assert bodies(url, "mine.numbers", 200, group="mine.readers") == numbers * 2
        assert topics(running.broker.url) == set()
        assert groups(running.broker.url) == set()
        assert f"Kafka version: {version}" in running.log_tail(1000)
        assert running.broker.provider == f"container {image}"
        port = urlsplit(running.broker.url).port
        [mine] = [one for one in client.containers.list() if one.id == running._container.get_container_id()]
        assert mine.attrs["HostConfig"]["PortBindings"]["9092/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
    finally:
        running.close()

    assert not kafka_answers("127.0.0.1", port)


@pytest.mark.parametrize("image", ["localstack/localstack:4.14.0", "ministackorg/ministack:1.5.33"], indirect=True)
def test_sqs_and_sns_are_served_and_a_test_has_a_prefix(image: str) -> None:
    running = BrokerContainer(KINDS["sqs"], image)
    try:
        with KINDS["sqs"].place(running.broker, "mine") as url:
            sqs, sns = aws_client("sqs", url), aws_client("sns", url)
            queue = sqs.create_queue(QueueName="mine-numbers")["QueueUrl"]
            arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
            topic = sns.create_topic(Name="mine-topic")["TopicArn"]
            sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "true"})
            sns.publish(TopicArn=topic, Message="hello")
            [message] = sqs.receive_message(QueueUrl=queue, WaitTimeSeconds=5)["Messages"]
        left = sqs.list_queues().get("QueueUrls", []) + sns.list_topics()["Topics"]
    finally:
        running.close()

    assert (message["Body"], left) == ("hello", [])


@pytest.mark.slow
@pytest.mark.parametrize("image", ["redis:8"], indirect=True)
def test_the_container_of_a_run_that_is_killed_is_removed(client: docker.DockerClient, image: str) -> None:
    program = f"""
import threading
from mqkit.testing.brokers import KINDS, BrokerContainer
running = BrokerContainer(KINDS["redis"], {image!r})
print(running._container.get_container_id(), flush=True)
threading.Event().wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        container = run.stdout.readline().strip()
        assert not gone(client, container)

        run.send_signal(signal.SIGKILL)

    wait_until(lambda: gone(client, container), within=30.0)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["redis:8"], indirect=True)
def test_a_sweep_removes_what_dead_runs_left_and_nothing_else(client: docker.DockerClient, image: str) -> None:
    dead = f"{socket.gethostname()}/{os.getpid()}/1"  # our number, but not our birth
    owners = {"dead": dead, "alive": owner(), "elsewhere": "elsewhere/1/1"}
    made = {name: client.containers.create(image, labels={OWNER: label}).id for name, label in owners.items()}
    made["of somebody"] = client.containers.create(image).id
    try:
        sweep(client)

        assert {name for name, one in made.items() if gone(client, one)} == {"dead"}
    finally:
        for one in made.values():
            if not gone(client, one):
                client.containers.get(one).remove(force=True, v=True)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["redis:8"], indirect=True)
def test_a_container_that_does_not_answer_is_an_error_with_its_log(image: str) -> None:
    with pytest.raises(BrokerFailed, match=r"rabbitmq in mqkit-test/redis:8 did not answer within 8 s(?s:.)*Ready to"):
        BrokerContainer(dataclasses.replace(KINDS["rabbitmq"], start_timeout=8.0), image)


@pytest.mark.slow
@pytest.mark.parametrize("image", ["redis:8"], indirect=True)
def test_the_workers_of_a_run_share_one_container(
    pytester: pytest.Pytester, client: docker.DockerClient, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQKIT_TEST_REDIS_IMAGE", image)
    pytester.makepyfile("""
        import pytest
        from pathlib import Path

        @pytest.mark.parametrize("turn", range(4))
        def test_it(mqkit_broker, turn):
            Path(f"url{turn}").write_text(mqkit_broker.url)
    """)

    result = pytester.runpytest_subprocess(
        *("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-W", "error", "-n", "2"),
        *("--mqkit-backends=redis", "--mqkit-provider=container"),
    )

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"mqkit: redis from container {image}, ready in *"])
    [url] = {Path(f"url{turn}").read_text() for turn in range(4)}
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(url) as one:
        one.ping()


def test_an_image_that_is_nowhere_is_absent_and_says_how_to_name_another(
    client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQKIT_TEST_REDIS_IMAGE", "registry.invalid/mqkit/none:1")

    with pytest.raises(BrokerAbsent, match=r"image registry\.invalid/mqkit/none:1 is not here and cannot be pulled"):
        provide("redis", "container")


def test_only_a_dead_owner_on_this_machine_has_abandoned_its_container() -> None:
    here, pid = socket.gethostname(), os.getpid()

    assert not abandoned(owner())
    assert abandoned(f"{here}/{pid}/1")
    assert abandoned(f"{here}/999999999/1")
    assert not abandoned("elsewhere/999999999/1")
    assert not abandoned("nonsense")


@pytest.mark.parametrize(
    ("base_url", "in_container", "daemon", "here"),
    [
        ("http+docker://localhost", False, "laptop", True),
        ("http+docker://localhost", True, "machine", True),
        ("http+docker://localhost", True, "host-of-the-container", False),
        ("http://192.0.2.1:2375", False, "elsewhere", False),
        ("http+docker://ssh", False, "elsewhere", False),
    ],
)
def test_loopback_is_used_where_the_daemon_shares_it(
    base_url: str, in_container: bool, daemon: str, here: bool
) -> None:
    assert daemon_is_here(base_url=base_url, in_container=in_container, daemon=daemon, machine="machine") == here
