"""What a user sees when RabbitMQ, the network or the configuration fails."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mqkit import Bus, Delivery, Queue, Retry, Topic, fixed
from mqkit.backends.rabbitmq.connection import ANSWER, SILENCE
from mqkit.backends.rabbitmq.receiver import RabbitReceiver
from mqkit.codecs import RAW
from mqkit.errors import (
    ConfigError,
    Denied,
    Lost,
    MessageTooLarge,
    MqkitError,
    NotFound,
    PublishFailed,
    PublishUnknown,
    TimedOut,
    Unavailable,
)
from mqkit.testing.brokers import Certificates, RabbitProcess
from tests.integration.receivers import declaration_of, receiver_of
from tests.rabbit_server import RabbitHarness
from tests.unit.waiting import until

pytestmark = pytest.mark.slow

words = Queue("words", str)
numbers = Queue("numbers", int)


def error_of(url: str) -> MqkitError:
    """What opening a bus raises; its time is bounded."""
    began = time.monotonic()
    with pytest.raises(MqkitError) as caught, Bus(url):
        pass
    # What may pass by itself is tried again until the bus gives up; what will not is said at once.
    assert time.monotonic() - began < (15.0 if caught.value.retryable else 5.0)
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(caught.value.__cause__)
    return caught.value


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(certificates: Certificates) -> Iterator[RabbitProcess]:
    with RabbitProcess(management=False, tls=certificates, client_certificates="required", external=True) as process:
        yield process


class TestConnecting:
    def test_a_wrong_password_is_denied_and_not_shown(self, harness: RabbitHarness) -> None:
        error = error_of(f"amqp://guest:s3cret@127.0.0.1:{harness.server.process.port}/")

        assert isinstance(error, Denied)
        assert not error.retryable

    def test_a_vhost_that_does_not_exist_is_not_found(self, harness: RabbitHarness) -> None:
        error = error_of(f"amqp://127.0.0.1:{harness.server.process.port}/nowhere")

        assert isinstance(error, NotFound)
        assert "nowhere" in str(error)

    def test_a_port_where_nobody_listens_is_unavailable(self) -> None:
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            error = error_of(f"amqp://127.0.0.1:{reserved.getsockname()[1]}/")

        assert isinstance(error, Unavailable)

    def test_a_port_that_says_nothing_is_unavailable_within_its_bound(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            error = error_of(f"amqp://127.0.0.1:{silent.getsockname()[1]}/?connect=0.5")

        assert isinstance(error, Unavailable)

    def test_the_next_host_is_used_when_the_first_one_does_not_answer(self, harness: RabbitHarness) -> None:
        port = harness.server.process.port
        with Bus(f"amqp://127.0.0.1:1/{harness.vhost}?hosts=127.0.0.1:{port}") as bus:
            assert bus.publish(words, "arrives")

    def test_tls_to_a_plain_port_says_so(self, harness: RabbitHarness) -> None:
        error = error_of(f"amqps://127.0.0.1:{harness.server.process.port}/")

        assert isinstance(error, ConfigError)
        assert "amqp://" in str(error)

    def test_no_log_at_any_level_has_the_password(
        self, harness: RabbitHarness, caplog: pytest.LogCaptureFixture
    ) -> None:
        api, port = harness.server.api, harness.server.process.port
        api("PUT", "users/keeper", {"password": "s3cret", "tags": ""})
        try:
            api("PUT", f"permissions/{harness.vhost}/keeper", {"configure": ".*", "write": ".*", "read": ".*"})
            caplog.set_level(logging.DEBUG)
            caplog.set_level(logging.DEBUG, logger="pika")
            caplog.set_level(logging.DEBUG, logger="mqkit")  # an example that was imported may have raised it
            bus, seen = harness.bus(f"amqp://keeper:s3cret@127.0.0.1:{port}/{harness.vhost}"), list[str]()
            bus.on(words)(seen.append)
            with bus.worker():
                bus.publish(words, "one")
                harness.wait(lambda: seen)
                harness.server.api.close_connections(harness.vhost)
                bus.publish(words, "two", timeout=20.0)
            assert bus.dead_letters(words).list() == []
            error_of(f"amqp://keeper:s3cret-and-wrong@127.0.0.1:{port}/{harness.vhost}")
        finally:
            api("DELETE", "users/keeper")

        assert any(record.name.startswith("pika") and record.levelno == logging.DEBUG for record in caplog.records)
        said = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
        assert "s3cret" not in said + caplog.text


class TestTls:
    def url(self, secure: RabbitProcess, ca: Path, more: str = "") -> str:
        return f"{secure.tls_url}?ca={ca}{more}"

    def test_a_server_whose_authority_is_not_trusted_is_denied(
        self, secure: RabbitProcess, certificates: Certificates
    ) -> None:
        assert isinstance(error_of(self.url(secure, certificates.stranger)), Denied)

    def test_a_missing_client_certificate_is_denied(self, secure: RabbitProcess, certificates: Certificates) -> None:
        error = error_of(self.url(secure, certificates.authority))

        assert isinstance(error, Denied)
        assert "cert=" in str(error)

    def test_plain_amqp_to_a_tls_port_names_the_other_scheme(self, secure: RabbitProcess) -> None:
        error = error_of(f"amqp://guest:guest@127.0.0.1:{secure.tls_port}/")

        assert isinstance(error, Unavailable)
        assert "amqps://" in str(error)

    def test_a_client_certificate_lets_a_user_in_by_password(
        self, secure: RabbitProcess, certificates: Certificates
    ) -> None:
        with Bus(self.url(secure, certificates.authority, _as_client(certificates))) as bus:
            assert bus.publish(words, "over TLS")

    def test_a_user_without_an_account_is_denied_by_its_certificate(
        self, secure: RabbitProcess, certificates: Certificates
    ) -> None:
        url = self.url(secure, certificates.authority, _as_client(certificates) + "&auth=external")

        assert isinstance(error_of(url), Denied)  # nobody made an account for the common name

    def test_a_client_certificate_alone_lets_the_user_in_that_it_names(
        self, secure: RabbitProcess, certificates: Certificates
    ) -> None:
        name = certificates.client_name
        secure.ctl("add_user", name, "nobody-knows-it")
        try:
            secure.ctl("set_permissions", name, ".*", ".*", ".*")
            with Bus(self.url(secure, certificates.authority, _as_client(certificates) + "&auth=external")) as bus:
                assert bus.publish(words, "by certificate")
                assert name in secure.ctl("list_connections", "user").split()
        finally:
            secure.ctl("delete_user", name)


def _as_client(certificates: Certificates) -> str:
    return f"&cert={certificates.client}&key={certificates.client_key}"


class TestLosingTheServer:
    def test_a_server_that_is_killed_and_comes_back_loses_nothing(self, harness: RabbitHarness) -> None:
        bus, seen = harness.bus(), Counter[int]()
        bus.on(numbers)(lambda number: seen.update([number]))
        bus.publish_many(numbers, range(300))

        with bus.worker():
            harness.wait(lambda: len(seen) > 50)
            harness.restart()
            bus.publish_many(numbers, range(300, 400), timeout=60.0)
            harness.wait(lambda: len(seen) == 400, within=60.0)

        assert set(seen) == set(range(400))

    def test_a_server_that_is_away_for_half_a_minute_loses_nothing_that_was_accepted(
        self, harness: RabbitHarness
    ) -> None:
        consuming, publishing, seen = harness.bus(), harness.bus(), Counter[int]()
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
                harness.wait(lambda: len(accepted) > 50, within=30.0)
                harness.server.process.kill()
                killed, before = time.monotonic(), len(errors)
                harness.wait(lambda: time.monotonic() - killed > 30.0, within=60.0)
                assert not consuming.health().ready
                harness.server.process.start()
                harness.server.hurry()
                goal = len(accepted) + 50
                harness.wait(lambda: len(accepted) > goal, within=60.0)
            finally:
                enough.set()
                publisher.join(30.0)
            harness.wait(lambda: set(accepted) <= set(seen), within=60.0)

        assert len(errors) > before
        assert {type(error) for error in errors} <= {PublishFailed, PublishUnknown, TimedOut, Unavailable}
        assert consuming.dead_letters(numbers).list() == []

    def test_connections_that_are_closed_by_an_operator_come_back(self, harness: RabbitHarness) -> None:
        bus, seen = harness.bus(), Counter[int]()
        bus.on(numbers)(lambda number: seen.update([number]))

        with bus.worker():
            for start in (0, 100, 200):
                bus.publish_many(numbers, range(start, start + 100))
                harness.wait(lambda: harness.server.api.close_connections(harness.vhost))
            harness.wait(lambda: len(seen) == 300, within=30.0)

        assert set(seen) == set(range(300))

    def test_a_frozen_server_is_noticed_without_a_heartbeat(self, harness: RabbitHarness) -> None:
        bus, seen = harness.bus(), list[int]()
        bus.on(numbers)(seen.append)

        with bus.worker():
            bus.publish(numbers, 1)
            harness.wait(lambda: seen == [1])
            harness.server.process.freeze()
            try:
                harness.wait(lambda: not bus.health().ready, within=12.0)
                with pytest.raises((TimedOut, PublishUnknown)):
                    bus.publish(numbers, 2, timeout=0.5)
            finally:
                harness.server.process.thaw()
            harness.wait(lambda: bus.health().ready, within=30.0)
            bus.publish(numbers, 3, timeout=30.0)
            harness.wait(lambda: 3 in seen, within=30.0)

    def test_what_is_declared_when_the_server_fails_is_declared_once_more(self, harness: RabbitHarness) -> None:
        bus, first, second = harness.bus(), Queue("first", int), Queue("second", int)
        with closing(bus.link.backend.admin()) as admin:
            admin.declare([declaration_of(bus, first)])
            # As a tick that finds a quorum queue half made does, which cannot be had for the asking (3.10.8).
            harness.server.process.ctl("eval", "[exit(Channel, kill) || Channel <- rabbit_channel:list()].")
            admin.declare([declaration_of(bus, second)])
        assert harness.depth(second).ready == 0

    @pytest.mark.parametrize("slept", [False, True])
    def test_a_connection_whose_end_was_heard_a_moment_ago_is_lost(self, harness: RabbitHarness, slept: bool) -> None:
        bus = harness.bus()
        bus.declare(words)
        with closing(receiver_of(bus, words)) as receiver:
            assert isinstance(receiver, RabbitReceiver)
            receiver.receive(1, 0.1)

            def heard() -> bool:
                harness.kill_connections()
                receiver._connection.serve()
                return not receiver._channel.is_open

            until(heard)
            receiver._served -= 1000.0 if slept else 0.0
            with pytest.raises(Lost):
                receiver.receive(10, 0.1)

    def test_an_upload_that_takes_long_is_no_silence(self, harness: RabbitHarness) -> None:
        blobs = Queue("blobs", bytes, codec=RAW)
        url = harness.url_with(lease=120)  # that the server says nothing by itself
        with harness.proxy() as proxy, Bus(proxy.through(url)) as bus:
            bus.declare(blobs)
            proxy.slow(rate=400_000)
            began = time.monotonic()
            bus.publish(blobs, bytes(4_000_000), timeout=60.0)
            took = time.monotonic() - began

        assert took > SILENCE + ANSWER + 1.0
        assert harness.depth(blobs).ready == 1

    def test_under_a_memory_alarm_publishes_wait_to_their_bound_and_consumers_go_on(
        self, harness: RabbitHarness
    ) -> None:
        consuming, publishing, seen = harness.bus(), harness.bus(), list[int]()
        slow = threading.Event()

        @consuming.on(numbers, concurrency=1)
        def handle(number: int) -> None:
            slow.wait(10.0)
            seen.append(number)

        publishing.publish_many(numbers, range(5))
        with consuming.worker():
            harness.server.process.ctl("set_vm_memory_high_watermark", "absolute", "1")
            try:
                publishing.publish_soon(numbers, 7)  # the server tells those of an alarm who publish
                harness.wait(lambda: not publishing.health().ready)
                began = time.monotonic()
                with pytest.raises((PublishUnknown, TimedOut)) as caught:
                    publishing.publish(numbers, 5, timeout=2.0)
                assert time.monotonic() - began < 4.0
                assert "takes nothing" in str(caught.value)
                slow.set()
                harness.wait(lambda: sorted(seen) == list(range(5)))
                assert not publishing.health().ready
            finally:
                harness.server.process.ctl("set_vm_memory_high_watermark", "0.4")
            publishing.publish(numbers, 6, timeout=20.0)
            harness.wait(lambda: 6 in seen)

        assert Counter(seen)[6] == 1

    def test_under_a_memory_alarm_ordered_messages_that_fail_go_on_being_tried(self, harness: RabbitHarness) -> None:
        steps, seen = Queue("steps", int, key=lambda step: f"key {step % 2}"), list[tuple[int, int]]()
        consuming, others = harness.bus(), harness.bus()

        @consuming.on(steps, concurrency=1, retry=Retry(attempts=3, backoff=fixed(0.1)))
        def handle(step: int, delivery: Delivery[int]) -> None:
            seen.append((step, delivery.attempt))
            if delivery.attempt < 3:
                raise ValueError("not yet")

        others.publish_many(steps, range(6))
        harness.server.process.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            with consuming.worker():
                harness.wait(lambda: len(seen) == 18, within=20.0)
                harness.wait_empty(steps)
        finally:
            harness.server.process.ctl("set_vm_memory_high_watermark", "0.4")

        assert sorted(seen) == [(step, attempt) for step in range(6) for attempt in (1, 2, 3)]

    def test_a_consumer_that_cannot_have_a_second_connection_for_notes_goes_on(self, harness: RabbitHarness) -> None:
        steps, seen = Queue("steps", int, key=lambda step: f"key {step % 2}"), list[tuple[int, int]]()
        consuming, others = harness.bus(), harness.bus()

        @consuming.on(steps, concurrency=1, retry=Retry(attempts=3, backoff=fixed(0.1)))
        def handle(step: int, delivery: Delivery[int]) -> None:
            seen.append((step, delivery.attempt))
            if step and delivery.attempt < 3:
                raise ValueError("not yet")

        with consuming.worker():
            others.publish(steps, 0)
            harness.wait(lambda: seen == [(0, 1)])
            harness.server.process.ctl("set_vhost_limits", "-p", harness.vhost, '{"max-connections": 0}')
            try:
                others.publish_many(steps, range(1, 5))
                harness.wait(lambda: len(seen) == 13)
            finally:
                harness.server.process.ctl("clear_vhost_limits", "-p", harness.vhost)

        assert sorted(seen) == [(0, 1)] + [(step, attempt) for step in range(1, 5) for attempt in (1, 2, 3)]

    def test_closing_under_an_alarm_is_bounded(self, harness: RabbitHarness) -> None:
        bus = harness.bus()
        bus.publish(numbers, 1)
        harness.server.process.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            future = bus.publish_soon(numbers, 2)
            harness.wait(lambda: not bus.health().ready)  # the server tells those of it who publish
            began = time.monotonic()
            with pytest.raises(MqkitError):
                bus.close(timeout=1.0)
            assert time.monotonic() - began < 6.0
            assert isinstance(future.exception(0), PublishUnknown)  # it is in the server's socket
        finally:
            harness.server.process.ctl("set_vm_memory_high_watermark", "0.4")


class TestLimits:
    def test_one_message_that_is_too_large_for_the_server_concerns_no_other(self) -> None:
        blobs = Queue("blobs", bytes, codec=RAW)
        with RabbitProcess(management=False, config={"max_message_size": "100000"}) as server, Bus(server.url) as bus:
            bus.declare(blobs)
            bodies = [bytes(100_001 if number == 5 else 10) for number in range(10)]
            futures = [bus.publish_soon(blobs, body, id=str(number)) for number, body in enumerate(bodies)]
            errors = [future.exception(10.0) for future in futures]
            with pytest.raises(PublishFailed):
                bus.flush()
            too_large = errors.pop(5)
            for number, error in zip([*range(5), *range(6, 10)], errors, strict=True):
                if error is not None:
                    assert isinstance(error, (PublishUnknown, PublishFailed))
                    bus.publish(blobs, bodies[number], id=str(number))
            with bus.subscription(blobs, prefetch=100) as messages:
                stored: list[str] = []
                while found := messages.receive(max=100, timeout=10.0 if len(stored) < 9 else 0.5):
                    stored += [delivery.id for delivery in found]

            assert isinstance(too_large, MessageTooLarge)
            assert "100000" in str(too_large)
            assert set(stored) == {str(number) for number in range(10) if number != 5}


class TestTakingTime:
    def test_ordered_retries_go_on_when_the_server_finds_that_they_take_too_long(self) -> None:
        steps, seen = Queue("steps", int, key=lambda number: "the only one"), list[tuple[int, int]]()
        # A channel ends between two tries: one whose verdict meets that end is made again.
        with RabbitProcess(config={"consumer_timeout": "5000"}) as server, Bus(server.url) as bus:
            server.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 200).")  # it looks once a minute

            @bus.on(steps, retry=Retry(attempts=5, backoff=fixed(2.0)))
            def handle(number: int, delivery: Delivery[int]) -> None:
                seen.append((number, delivery.attempt))
                if number == 1:
                    raise ConnectionError("no cure")

            bus.publish_many(steps, [1, 2])
            with bus.worker():
                until(lambda: (2, 1) in seen, within=60.0)
            dead = [(letter.message.body, letter.attempts) for letter in bus.dead_letters(steps).list()]
            log = server.log_tail(200)

        assert seen == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (2, 1)]
        assert dead == [(b"1", 5)]
        assert "timed out waiting for delivery acknowledgement" in log, log

    def test_they_keep_their_place_when_that_makes_suspects_of_those_behind_them(self) -> None:
        steps, seen = Queue("steps", int, key=lambda number: "the only one"), list[tuple[int, int]]()
        # Between the fourth try and the fifth, and between the seventh and the eighth.
        with RabbitProcess(config={"consumer_timeout": "6500"}) as server, Bus(server.url) as bus:
            server.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 200).")  # it looks once a minute

            @bus.on(steps, retry=Retry(attempts=9, backoff=fixed(2.0), crashes=2))
            def handle(number: int, delivery: Delivery[int]) -> None:
                seen.append((number, delivery.attempt))
                if number == 1:
                    raise ConnectionError("no cure")

            bus.publish_many(steps, [1, 2, 3])
            with bus.worker():
                until(lambda: (3, 1) in seen, within=60.0)
            dead = [(letter.message.body, letter.attempts) for letter in bus.dead_letters(steps).list()]
            log = server.log_tail(400)

        assert log.count("timed out waiting for delivery acknowledgement") == 2, log
        assert seen == [*((1, attempt) for attempt in range(1, 10)), (2, 1), (3, 1)]
        assert dead == [(b"1", 9)]


class TestLosingTopology:
    def test_a_deleted_queue_is_made_again_by_its_consumer(self, harness: RabbitHarness) -> None:
        bus, seen = harness.bus(), list[str]()
        bus.on(words)(seen.append)

        with bus.worker():
            for word in ("one", "two", "three"):
                bus.publish(words, word)
                harness.wait(lambda word=word: word in seen)
                harness.delete(words)
                harness.wait(lambda: harness.depth(words).ready == 0)

        assert seen == ["one", "two", "three"]

    def test_a_deleted_topic_is_made_again_by_its_publisher_and_disturbs_no_other(self, harness: RabbitHarness) -> None:
        first, second, bus = Topic("first", str), Topic("second", str), harness.bus()
        bus.publish(first, "one")
        bus.publish(second, "one")

        harness.delete(first)
        ids = [bus.publish(topic, "two") for topic in (first, second, first)]

        assert len(set(ids)) == 3

    def test_a_queue_of_another_kind_is_a_mismatch_that_names_the_difference(self, harness: RabbitHarness) -> None:
        path = f"queues/{harness.vhost}/{words.name}"
        harness.server.api("PUT", path, {"durable": True, "arguments": {"x-queue-type": "classic"}})

        with pytest.raises(ConfigError, match="x-queue-type"):
            harness.bus().publish(words, "no")
