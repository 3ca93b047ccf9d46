"""Kafka as a process of our own: what a test can do to it, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kafka import KafkaConsumer
from kafka.errors import KafkaError

from mqkit.testing.brokers import (
    KINDS,
    Broker,
    BrokerAbsent,
    BrokerFailed,
    Certificates,
    KafkaMechanism,
    KafkaProcess,
    provide,
)
from mqkit.testing.brokers.kafka import HOME, kafka_answers
from mqkit.testing.brokers.process import free_ports
from mqkit.testing.brokers.providers import from_environment
from tests.brokers.kafkas import (
    VERSIONS,
    answers_over_tls,
    bodies,
    connection,
    groups,
    kafka_process,
    make_topic,
    publish,
    publish_in_transaction,
    refuses,
    topics,
)
from tests.brokers.processes import wait_until, wait_until_gone

pytestmark = pytest.mark.slow

NUMBERS = [b"%d" % number for number in range(100)]
PASSWORD = 'p@ss"/1, \\é]'  # nothing that a URL, a list, a quotation or a file of properties could take for its own
MECHANISMS = pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module", params=VERSIONS)
def broker(request: pytest.FixtureRequest, certificates: Certificates) -> Iterator[KafkaProcess]:
    with kafka_process(version=request.param, tls=certificates, users={"app": PASSWORD}) as broker:
        yield broker


def test_what_is_confirmed_and_the_port_survive_a_kill(broker: KafkaProcess) -> None:
    url, first = broker.url, broker.pid
    make_topic(url, "kept")
    publish(url, "kept", NUMBERS)

    broker.kill()
    assert not broker.running
    wait_until_gone(first)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", broker.port), 1.0)
    broker.start()

    assert (broker.url, broker.pid == first) == (url, False)
    publish(url, "kept", [b"last"])
    assert bodies(url, "kept", 101) == [*NUMBERS, b"last"]


def test_a_restart_in_good_order_keeps_everything_too(broker: KafkaProcess) -> None:
    url = broker.url
    make_topic(url, "kept-on-stop")
    publish(url, "kept-on-stop", NUMBERS)

    broker.restart()

    assert broker.url == url
    assert bodies(url, "kept-on-stop", 100) == NUMBERS


def test_a_frozen_broker_accepts_and_does_not_answer_until_it_thaws(broker: KafkaProcess) -> None:
    make_topic(broker.url, "thawed")
    broker.freeze()
    socket.create_connection(("127.0.0.1", broker.port), 1.0).close()
    assert not kafka_answers("127.0.0.1", broker.port)

    broker.thaw()

    publish(broker.url, "thawed", NUMBERS)
    assert bodies(broker.url, "thawed", 100) == NUMBERS


def test_a_transaction_ends_on_one_node(broker: KafkaProcess) -> None:
    make_topic(broker.url, "together")

    publish_in_transaction(broker.url, "together", NUMBERS)

    assert bodies(broker.url, "together", 100) == NUMBERS


def test_no_topic_is_made_by_being_used(broker: KafkaProcess) -> None:
    with pytest.raises(KafkaError):
        publish(broker.url, "nobodys", [b"1"], max_block_ms=500)

    assert "nobodys" not in topics(broker.url)


@MECHANISMS
def test_a_login_needs_the_right_password(broker: KafkaProcess, mechanism: KafkaMechanism) -> None:
    url = broker.url_of("app", mechanism=mechanism)
    make_topic(broker.url, f"seen-by-{mechanism}")

    assert f"seen-by-{mechanism}" in topics(url)
    assert refuses(url, within=5.0, sasl_plain_password="guess")
    assert "Failed authentication" in broker.log_tail(200)


def test_tls_convinces_those_who_trust_its_authority_only(broker: KafkaProcess, certificates: Certificates) -> None:
    make_topic(broker.url, "encrypted")

    assert "encrypted" in topics(broker.tls_url, ssl_cafile=str(certificates.authority))
    with pytest.raises(ssl.SSLCertVerificationError):
        answers_over_tls(broker.tls_port, certificates.context(trusting=certificates.stranger))


@MECHANISMS
def test_a_login_over_tls_needs_both(
    broker: KafkaProcess, certificates: Certificates, mechanism: KafkaMechanism
) -> None:
    url = broker.tls_url_of("app", mechanism=mechanism)
    make_topic(broker.url, f"encrypted-{mechanism}")

    assert f"encrypted-{mechanism}" in topics(url, ssl_cafile=str(certificates.authority))
    assert refuses(url, ssl_cafile=str(certificates.authority), sasl_plain_password="guess")
    with pytest.raises(ssl.SSLCertVerificationError):
        answers_over_tls(broker.sasl_tls_port, certificates.context(trusting=certificates.stranger))


def test_a_required_client_certificate_is_asked_for_and_further_settings_win(certificates: Certificates) -> None:
    config = {"auto.create.topics.enable": "true", "num.partitions": "3"}
    with kafka_process(tls=certificates, client_certificates="required", config=config) as broker:
        publish(broker.url, "made-by-use", [b"1"])
        assert answers_over_tls(broker.tls_port, certificates.context(as_client=True))
        with pytest.raises(ssl.SSLError, match="ALERT"):
            answers_over_tls(broker.tls_port, certificates.context())
        consumer = KafkaConsumer(**connection(broker.url))
        assert consumer.partitions_for_topic("made-by-use") == {0, 1, 2}
        consumer.close()


def test_a_place_has_a_prefix_and_leaves_neither_topic_nor_group(broker: KafkaProcess) -> None:
    make_topic(broker.url, "others")
    publish(broker.url, "others", [b"1"])
    assert bodies(broker.url, "others", 1, group="others") == [b"1"]
    shared = from_environment(KINDS["kafka"], {"MQKIT_TEST_KAFKA_URL": broker.url_of("app")}).broker
    with KINDS["kafka"].place(shared, "mine") as url:
        assert url == f"{shared.url}&prefix=mine."
        make_topic(url, "mine.numbers")
        publish(url, "mine.numbers", NUMBERS)
        assert bodies(url, "mine.numbers", 100, group="mine.closed") == NUMBERS
        member = KafkaConsumer("mine.numbers", **connection(url, group_id="mine.alive", auto_offset_reset="earliest"))
        assert member.poll(20_000)
        assert {"mine.closed", "mine.alive"} <= groups(broker.url)

    assert not [topic for topic in topics(broker.url) if topic.startswith("mine")]
    assert not [group for group in groups(broker.url) if group.startswith("mine")]
    assert bodies(broker.url, "others", 1) == [b"1"]
    assert "others" in groups(broker.url)
    member.close()


def test_a_place_that_cannot_be_cleared_is_an_error() -> None:
    (port,) = free_ports(1)
    gone = Broker(kind="kafka", url=f"kafka://127.0.0.1:{port}", management_url=None, provider="process", seconds=0.0)

    with pytest.raises(BrokerFailed, match=r"kafka \(process\) is gone; the topics and groups mine\.\* are not"):
        with KINDS["kafka"].place(gone, "mine"):
            pass


def test_it_is_provided_as_a_process_that_ends_with_its_data() -> None:
    kafka_process().close()  # which skips where there is none
    running = provide("kafka", "native")
    try:
        make_topic(running.broker.url, "numbers")
        publish(running.broker.url, "numbers", NUMBERS)
        assert bodies(running.broker.url, "numbers", 100) == NUMBERS
        assert running.broker.provider == "process"
        assert "Kafka Server started" in running.log_tail(200)
    finally:
        running.close()

    assert not kafka_answers("127.0.0.1", urlsplit(running.broker.url).port or 0)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"authorizer.class.name": "no.such.Class"}, r"status \d+ while it started(?s:.)*ClassNotFound.*no.such.Class"),
        ({"listeners": "nonsense"}, r"status 1 while it formatted its storage(?s:.)*Unable to parse nonsense"),
    ],
)
def test_an_exit_at_start_is_an_error_with_the_log(config: dict[str, str], reason: str) -> None:
    broker = kafka_process(config=config)
    try:
        with pytest.raises(BrokerFailed, match=f"kafka ended with {reason}"):
            broker.start()
    finally:
        broker.close()


def test_a_release_that_is_named_is_the_one_that_runs_unless_another_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    older = kafka_process(version="3.9.1")
    newest = kafka_process()
    monkeypatch.setenv(HOME, str(older.jars.parent))
    named, asked = KafkaProcess(), KafkaProcess(version="4.3.0")
    try:
        assert [one.version for one in (older, newest, named, asked)] == ["3.9.1", "4.3.0", "3.9.1", "4.3.0"]
    finally:
        for one in (older, newest, named, asked):
            one.close()


def test_a_version_without_jars_is_absent_and_says_what_fetches_them() -> None:
    with pytest.raises(
        BrokerAbsent, match=r"jars of Kafka 0\.0\.1 are not here \(tools/fetch-kafka .* MQKIT_TEST_KAFKA_"
    ):
        KafkaProcess(version="0.0.1")


def test_without_java_it_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BrokerAbsent, match="no process: java is not installed"):
        provide("kafka", "native")


def test_nothing_is_left_after_close() -> None:
    with kafka_process() as broker:
        group = broker.pid

    broker.close()

    assert not broker.folder.exists()
    wait_until_gone(group)


def test_nothing_is_left_when_the_run_is_killed() -> None:
    kafka_process().close()
    program = """
import threading
from mqkit.testing.brokers import KafkaProcess
broker = KafkaProcess().start()
print(broker.pid, broker.folder, flush=True)
threading.Event().wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        group, folder = run.stdout.readline().split()
        os.killpg(int(group), 0)

        run.send_signal(signal.SIGKILL)

    wait_until(lambda: not Path(folder).exists())
    wait_until_gone(int(group))
