"""What a user sees when Kafka, the network or the configuration fails."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourcePatternFilter,
    ResourceType,
)

from mqkit import Bus, Delivery, Queue, Retry, Topic, fixed
from mqkit.backends.kafka import consumer, producer
from mqkit.backends.kafka.network import make_driver
from mqkit.errors import ConfigError, Denied, MqkitError, PublishFailed, PublishUnknown, TimedOut, Unavailable
from mqkit.native import KafkaPartition
from mqkit.testing.brokers import Certificates, KafkaProcess
from tests.kafka_server import KafkaHarness
from tests.unit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

words = Queue("words", str)
numbers = Queue("numbers", int)


def error_of(url: str, timeout: float = 20.0) -> MqkitError:
    """What opening a bus raises; soon, and without the password."""
    began, bus = time.monotonic(), Bus(url)
    with pytest.raises(MqkitError) as caught:
        bus.open(timeout=timeout)
    bus.close()
    assert time.monotonic() - began < 5.0
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + repr(bus)
    return caught.value


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[KafkaProcess]:
    """`app` may do everything, `guest` nothing; who comes without a login is the cluster itself."""
    rights = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "ssl.principal.mapping.rules": f"RULE:.*CN={certificates.client_name}.*/app/",
        "super.users": "User:ANONYMOUS;User:app",
    }
    users = {"app": "s3cret", "guest": "s3cret-too"}
    with KafkaProcess(users=users, tls=certificates, client_certificates="required", config=rights) as process:
        yield process


class TestConnecting:
    def test_a_port_where_nobody_listens_is_unavailable(self) -> None:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            error = error_of(f"kafka://127.0.0.1:{reserved.getsockname()[1]}", 2.0)

        assert isinstance(error, Unavailable)

    def test_a_port_that_says_nothing_is_unavailable_within_its_bound(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            error = error_of(f"kafka://127.0.0.1:{silent.getsockname()[1]}?patience=0.5", 2.0)

        assert isinstance(error, Unavailable)

    def test_the_next_host_is_used_when_the_first_one_does_not_answer(self, secure: KafkaProcess) -> None:
        with Bus(f"kafka://127.0.0.1:1?hosts=127.0.0.1:{secure.port}") as bus:
            assert bus.publish(words, "arrives")


class TestLogin:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
    def test_the_right_password_lets_a_user_in(self, secure: KafkaProcess, mechanism: str) -> None:
        with Bus(_login(secure, mechanism)) as bus:
            assert bus.publish(words, "by password")

    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
    def test_a_wrong_password_is_denied_and_not_shown(self, secure: KafkaProcess, mechanism: str) -> None:
        error = error_of(_login(secure, mechanism, "s3cret-and-wrong"))

        assert isinstance(error, Denied)
        assert not error.retryable

    def test_a_mechanism_that_the_server_does_not_offer_is_a_wrong_url(self, secure: KafkaProcess) -> None:
        error = error_of(_login(secure, "SCRAM-SHA-512"))

        assert isinstance(error, ConfigError)
        assert "sasl_mechanism=" in str(error)

    def test_a_password_for_a_server_without_logins_is_a_wrong_url(self, secure: KafkaProcess) -> None:
        error = error_of(f"kafka://app:s3cret@127.0.0.1:{secure.port}")

        assert isinstance(error, ConfigError)
        assert "password" in str(error)

    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
    def test_no_log_at_any_level_has_the_password(
        self, secure: KafkaProcess, mechanism: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        caplog.set_level(logging.DEBUG, logger="kafka")
        caplog.set_level(logging.DEBUG, logger="mqkit")  # an example that was imported may have raised it
        heard, seen = Queue(f"heard-{mechanism}", str), list[str]()

        with Bus(_login(secure, mechanism)) as bus:
            bus.on(heard)(seen.append)
            with bus.worker():
                bus.publish(heard, "one")
                until(lambda: seen == ["one"])
            assert bus.dead_letters(heard).list() == []
        error_of(_login(secure, mechanism, "s3cret-and-wrong"))

        assert any(record.name.startswith("kafka") and record.levelno == logging.DEBUG for record in caplog.records)
        said = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
        assert "s3cret" not in said + caplog.text


class TestTls:
    def test_a_server_whose_authority_is_not_trusted_is_denied(
        self, secure: KafkaProcess, certificates: Certificates
    ) -> None:
        error = error_of(f"{secure.tls_url}?ca={certificates.stranger}{_as_client(certificates)}")

        assert isinstance(error, Denied)
        assert "ca=" in str(error)

    def test_a_missing_client_certificate_is_denied(self, secure: KafkaProcess, certificates: Certificates) -> None:
        error = error_of(f"{secure.tls_url}?ca={certificates.authority}")

        assert isinstance(error, Denied)
        assert "cert=" in str(error)

    def test_a_client_certificate_lets_its_owner_in(self, secure: KafkaProcess, certificates: Certificates) -> None:
        with Bus(f"{secure.tls_url}?ca={certificates.authority}{_as_client(certificates)}") as bus:
            assert bus.publish(words, "over TLS")

    def test_a_password_over_tls_lets_a_user_in(self, secure: KafkaProcess, certificates: Certificates) -> None:
        url = f"{secure.tls_url_of('app')}&ca={certificates.authority}{_as_client(certificates)}"
        with Bus(url) as bus:
            assert bus.publish(words, "by password, over TLS")

    def test_tls_to_a_plain_port_is_a_wrong_url(self, secure: KafkaProcess, certificates: Certificates) -> None:
        error = error_of(f"kafka+ssl://localhost:{secure.port}?ca={certificates.authority}")

        assert isinstance(error, ConfigError)
        assert "kafka://" in str(error)

    def test_a_plain_connection_to_a_tls_port_is_a_wrong_url(self, secure: KafkaProcess) -> None:
        error = error_of(f"kafka://127.0.0.1:{secure.tls_port}")

        assert isinstance(error, ConfigError)
        assert "TLS" in str(error)


def _login(secure: KafkaProcess, mechanism: str, password: str = "s3cret") -> str:
    return f"kafka://app:{password}@127.0.0.1:{secure.sasl_port}?sasl_mechanism={mechanism}"


def _as_client(certificates: Certificates) -> str:
    return f"&cert={certificates.client}&key={certificates.client_key}"


class TestRights:
    def test_those_that_the_documentation_names_are_enough_and_others_are_denied(self, secure: KafkaProcess) -> None:
        url, seen = f"{secure.url_of('guest')}&prefix=guest.", list[tuple[str, int]]()
        events = Topic("events", str, groups=["all"])
        _grant(secure, "guest", "guest.")

        with Bus(url) as bus:

            @bus.on(events, group="all", promise="exactly_once", retry=Retry(attempts=2, backoff=fixed(0.2)))
            def handle(word: str, delivery: Delivery[str]) -> None:
                seen.append((word, delivery.attempt))
                if word == "bad":
                    raise ConnectionError("no cure")
                delivery.publish(words, word)

            with bus.worker():
                bus.publish_many(events, ["good", "bad"])
                until(lambda: len(bus.dead_letters(events, group="all").list()) == 1)
            with bus.subscription(words) as messages:
                [copied] = messages.receive(timeout=10.0)
                copied.ack()

        assert (copied.payload, sorted(seen)) == ("good", [("bad", 1), ("bad", 2), ("good", 1)])
        with Bus(url.replace("guest.", "others.")) as bus, pytest.raises(Denied):
            bus.publish(words, "not mine")


def _grant(server: KafkaProcess, user: str, prefix: str) -> None:
    """What docs/backends/kafka.md calls the least rights, without those of the admin verbs."""
    kinds = {
        ResourceType.TOPIC: ("CREATE", "DESCRIBE", "READ", "WRITE"),
        ResourceType.GROUP: ("CREATE", "DESCRIBE", "READ", "WRITE"),
        ResourceType.TRANSACTIONAL_ID: ("WRITE", "DESCRIBE"),
    }
    granted = [
        (ResourcePattern(kind, prefix, ACLResourcePatternType.PREFIXED), name)
        for kind, names in kinds.items()
        for name in names
    ]
    granted.append((ResourcePattern(ResourceType.CLUSTER, "kafka-cluster"), "IDEMPOTENT_WRITE"))
    admin = make_driver(KafkaAdminClient, bootstrap_servers=f"127.0.0.1:{server.port}")
    try:
        rights = [
            ACL(f"User:{user}", "*", ACLOperation[name], ACLPermissionType.ALLOW, pattern) for pattern, name in granted
        ]
        answer = admin.create_acls(rights)
        assert not answer["failed"], answer
        # The broker applies them a moment after the cluster has agreed to them.
        anything = ResourcePatternFilter(ResourceType.ANY, None, ACLResourcePatternType.ANY)
        theirs = ACLFilter(f"User:{user}", "*", ACLOperation.ANY, ACLPermissionType.ANY, anything)
        until(lambda: set(rights) <= set(admin.describe_acls(theirs)[0]))
    finally:
        admin.close()


def in_flight(bus: Bus) -> bool:
    """Has the driver sent something that is not answered?"""
    publisher: Any = bus.link.publish_pump._publisher
    return any(publisher._producer.driver._sender._in_flight_batches.values())


class TestLosingTheServer:
    def test_what_was_accepted_while_it_was_away_at_the_start_is_sent_when_it_comes(
        self, harness: KafkaHarness
    ) -> None:
        bus = harness.bus()
        with harness.outage():
            futures = [bus.publish_soon(numbers, number) for number in range(100)]
            with pytest.raises(Unavailable):
                bus.open(timeout=1.0)
        for future in futures:
            future.result(30.0)

        assert sorted(map(int, harness.read_native(numbers))) == list(range(100))

    def test_what_expires_while_it_is_away_does_not_end_publishing(
        self, harness: KafkaHarness, kafka: KafkaProcess, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(producer, "EXPIRY", 2.0)
        bus = harness.bus(harness.url_with(patience=1.0, lease=1.0))
        bus.publish(words, "before")

        kafka.freeze()
        expiring = bus.publish_soon(words, "in flight")
        harness.wait(lambda: in_flight(bus))
        with harness.outage():
            assert isinstance(expiring.exception(30.0), PublishUnknown)
        for number in range(3):
            bus.publish(words, f"after {number}", timeout=20.0)

        assert sorted(harness.read_native(words)) == [b'"after 0"', b'"after 1"', b'"after 2"', b'"before"']

    def test_ten_seconds_without_it_lose_nothing_that_was_accepted(self, harness: KafkaHarness) -> None:
        consuming, publishing, seen = harness.bus(harness.url_with(lease=2)), harness.bus(), Counter[int]()
        consuming.on(numbers)(lambda number: seen.update([number]))
        accepted: list[int] = []
        errors: list[MqkitError] = []
        enough = threading.Event()

        def publish() -> None:
            while not enough.is_set():
                number = len(accepted)
                try:
                    publishing.publish(numbers, number, id=f"number {number}", timeout=2.0)
                except MqkitError as exc:
                    errors.append(exc)
                    enough.wait(0.2)
                else:
                    accepted.append(number)

        publisher = threading.Thread(target=publish)
        with consuming.worker():
            publisher.start()
            try:
                harness.wait(lambda: len(seen) > 50, within=30.0)
                with harness.outage():
                    killed, before = time.monotonic(), len(errors)
                    harness.wait(lambda: time.monotonic() - killed > 10.0, within=30.0)
                    assert not consuming.health().ready
                goal = len(accepted) + 50
                harness.wait(lambda: len(accepted) > goal, within=60.0)
            finally:
                enough.set()
                publisher.join(30.0)
            harness.wait(lambda: set(accepted) <= set(seen), within=60.0)

        assert len(errors) > before
        assert {type(error) for error in errors} <= {PublishFailed, PublishUnknown, TimedOut, Unavailable}
        assert consuming.dead_letters(numbers).list() == []

    def test_a_silent_one_is_noticed_after_a_lease_and_publishes_end_in_their_time(
        self, harness: KafkaHarness, kafka: KafkaProcess
    ) -> None:
        bus, seen = harness.bus(harness.url_with(lease=1.0)), list[int]()
        bus.on(numbers)(seen.append)

        with bus.worker():
            bus.publish(numbers, 1)
            harness.wait(lambda: seen == [1])
            kafka.freeze()
            try:
                with pytest.raises(PublishUnknown):
                    bus.publish(numbers, 2, timeout=3.0)
                harness.wait(lambda: not bus.health().ready, within=10.0)
            finally:
                kafka.thaw()
            harness.wait(lambda: bus.health().ready, within=30.0)
            bus.publish(numbers, 3, timeout=30.0)
            harness.wait(lambda: 3 in seen, within=30.0)

    def test_a_lease_that_the_cluster_does_not_allow_is_a_wrong_url(self, secure: KafkaProcess) -> None:
        with Bus(f"{secure.url}?lease=0.5") as bus, pytest.raises(ConfigError, match="lease="):
            bus.subscription(words).receive(timeout=30.0)


class TestAForgottenProducer:
    """A cluster forgets who has begun no transaction for a while, a week unless it is told otherwise."""

    @pytest.fixture
    def forgetful(self) -> Iterator[KafkaProcess]:
        config = {
            "transactional.id.expiration.ms": "5000",
            "transaction.remove.expired.transaction.cleanup.interval.ms": "100",
        }
        with KafkaProcess(config=config) as process:
            yield process

    def test_a_verdict_is_carried_out_again_and_its_handler_is_not(
        self, forgetful: KafkaProcess, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen = list[str]()
        with Bus(forgetful.url) as bus:

            @bus.on(words, retry=Retry(attempts=1))
            def fail(text: str) -> None:
                seen.append(text)
                raise ConnectionError("no cure")

            with bus.worker(), caplog.at_level(logging.WARNING, "mqkit"):
                bus.publish(words, "before")
                until(lambda: len(bus.dead_letters(words).list()) == 1)
                until(lambda: transactional_ids(forgetful) == [])
                bus.publish(words, "after")
                until(lambda: len(bus.dead_letters(words).list()) == 2)
                assert bus.health().ready

        assert seen == ["before", "after"]
        said = [record for record in caplog.records if record.message == "settlements.delayed"]
        assert [vars(record)["source"] for record in said] == [str(words.address)]


def transactional_ids(server: KafkaProcess) -> list[str]:
    """Of those that the cluster knows."""
    with closing(make_driver(KafkaAdminClient, bootstrap_servers=f"127.0.0.1:{server.port}")) as admin:
        return [each.transactional_id for listed in admin.list_transactions().values() for each in listed]


class TestDamage:
    """Of a batch on a broker's disk: it is said where, and read once it is whole again."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(consumer, "REPAIR", 1.0)

    def test_it_holds_up_nothing_but_what_is_behind_it(
        self, harness: KafkaHarness, kafka: KafkaProcess, caplog: pytest.LogCaptureFixture
    ) -> None:
        halves = Queue("halves", str, partitions=2)
        bus, seen = harness.bus(harness.url_with(lease=5.0)), list[str]()
        bus.declare(halves)
        for body in ("first", "damaged", "behind it"):
            bus.publish(halves, body, native=KafkaPartition(0))
        bus.on(halves)(seen.append)

        with damaged(log_of(kafka, harness.topic(halves)), b"damaged"), caplog.at_level(logging.WARNING, "mqkit"):
            with bus.worker():
                harness.wait(lambda: len(batches_said(caplog)) > 7)  # which takes longer than a lease
                for number in range(20):
                    bus.publish(halves, f"other {number}", native=KafkaPartition(1))
                harness.wait(lambda: len(seen) == 21)
                assert bus.health().ready
        assert sorted(seen) == sorted(["first", *(f"other {number}" for number in range(20))])
        assert set(batches_said(caplog)) == {(harness.topic(halves), 0, 1)}
        ours = [record for record in caplog.records if vars(record).get("source", halves.name) == halves.name]
        said = {record.message for record in ours}  # publishers and the ladder of others may speak too
        assert {message for message in said if not message.startswith(("publisher.", "delayed."))} == {"batch.damaged"}

        with bus.worker():
            harness.wait(lambda: len(seen) == 23)
        assert sorted(seen[21:]) == ["behind it", "damaged"]

    def test_who_waits_for_its_repair_reads_it(
        self, harness: KafkaHarness, kafka: KafkaProcess, caplog: pytest.LogCaptureFixture
    ) -> None:
        bus, seen = harness.bus(), list[str]()
        bus.declare(words)
        bus.publish(words, "damaged", native=KafkaPartition(0))
        bus.on(words)(seen.append)

        with ExitStack() as damage, caplog.at_level(logging.WARNING, "mqkit"):
            damage.enter_context(damaged(log_of(kafka, harness.topic(words)), b"damaged"))
            with bus.worker():
                harness.wait(lambda: batches_said(caplog))
                bus.publish(words, "behind it", native=KafkaPartition(0))
                damage.close()
                harness.wait(lambda: len(seen) == 2)

        assert sorted(seen) == ["behind it", "damaged"]

    def test_of_delayed_messages_it_holds_up_those_of_its_lane(
        self, harness: KafkaHarness, kafka: KafkaProcess, caplog: pytest.LogCaptureFixture
    ) -> None:
        bus, seen = harness.bus(), list[str]()
        bus.declare(words)
        for body in ("first", "damaged", "behind it"):
            bus.publish(words, body, delay=2.0)
        bus.on(words)(seen.append)

        with damaged(log_of(kafka, harness.lane(2.0)), b"damaged"), caplog.at_level(logging.WARNING, "mqkit"):
            with bus.worker():
                harness.wait(lambda: batches_said(caplog))
                bus.publish(words, "in another lane", delay=0.5)
                harness.wait(lambda: len(seen) == 2)
        assert sorted(seen) == ["first", "in another lane"]
        assert set(batches_said(caplog)) == {(harness.lane(2.0), 0, 1)}

        with bus.worker():
            harness.wait(lambda: len(seen) == 4)
        assert sorted(seen[2:]) == ["behind it", "damaged"]

    def test_who_looks_at_dead_letters_is_told(self, harness: KafkaHarness, kafka: KafkaProcess) -> None:
        bus = harness.bus(harness.url_with(patience=2.0))

        @bus.on(words, retry=Retry(attempts=1))
        def fail(text: str) -> None:
            raise ValueError(text)

        with bus.worker():
            bus.publish(words, "damaged")
            harness.wait(lambda: bus.dead_letters(words).list())

        with damaged(log_of(kafka, harness.topic_of_the_dead(words)), b"damaged"), pytest.raises(Unavailable):
            bus.dead_letters(words).list()
        assert len(bus.dead_letters(words).list()) == 1


def log_of(kafka: KafkaProcess, topic: str) -> Path:
    return kafka.folder / "data" / f"{topic}-0" / "00000000000000000000.log"


@contextmanager
def damaged(file: Path, part: bytes) -> Iterator[None]:
    whole = file.read_bytes()
    place = whole.index(part)

    def write(byte: int) -> None:
        with file.open("r+b") as opened:
            opened.seek(place)
            opened.write(bytes([byte]))

    write(whole[place] ^ 1)
    try:
        yield
    finally:
        write(whole[place])


def batches_said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, int]]:
    """Of which it was said that they are damaged."""
    said = (vars(record) for record in caplog.records if record.message == "batch.damaged")
    return [(each["topic"], each["partition"], each["offset"]) for each in said]


class TestEndsOfPrograms:
    def test_what_a_program_accepted_is_sent_although_it_ends_without_closing_its_bus(
        self, harness: KafkaHarness
    ) -> None:
        code = """
import sys
from mqkit import Bus, Queue
bus, numbers = Bus(sys.argv[1]), Queue("numbers", int)
bus.publish(numbers, 0)
for number in range(1, 5000):
    bus.publish_soon(numbers, number)
"""
        ended = subprocess.run([sys.executable, "-c", code, harness.url], capture_output=True, text=True, timeout=60)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert sorted(map(int, harness.read_native(numbers))) == list(range(5000))

    def test_children_forked_under_load_end_silently_and_send_nothing_of_their_parents(
        self, harness: KafkaHarness
    ) -> None:
        code = """
import os, sys, threading
from mqkit import Bus, Queue
bus, numbers = Bus(sys.argv[1]), Queue("numbers", int)
bus.publish(numbers, 0)
publishing = threading.Thread(target=lambda: [bus.publish_many(numbers, range(100)) for _ in range(50)])
publishing.start()
for _ in range(10):
    if not (child := os.fork()):
        sys.exit(0)
    os.waitpid(child, 0)
publishing.join()
bus.close()
"""
        ended = subprocess.run([sys.executable, "-c", code, harness.url], capture_output=True, text=True, timeout=60)

        assert (ended.returncode, ended.stderr) == (0, "")
        assert len(harness.read_native(numbers)) == 5001
