"""What a Redis server can do to a program, provoked on real ones."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import redis

from mqkit import Bus, Delivery, Queue, Retry, Topic, fixed
from mqkit.errors import ConfigError, Denied, MqkitError, NotFound, PublishFailed, PublishUnknown, TimedOut, Unavailable
from mqkit.native import RedisQueue, RedisTopic
from mqkit.testing.brokers import RedisProcess, RedisUser
from mqkit.testing.chaos import FaultProxy
from mqkit.worker import Worker
from tests.integration.redis.backends import backend_of
from tests.unit.waiting import until

pytestmark = pytest.mark.slow

words = Queue("words", str)
keyed = Queue("keyed", str, key=lambda word: word.split()[0])


class Consumer:
    """A bus with a worker that notes what it handles."""

    def __init__(self, url: str, queue: Queue[str] = words, *, gate: threading.Event | None = None) -> None:
        self.bus = Bus(url)
        self.seen: list[str] = []

        @self.bus.on(queue, concurrency=4)
        def handle(word: str) -> None:
            if gate is not None:
                gate.wait(30)
            self.seen.append(word)

    @contextmanager
    def working(self) -> Iterator[Worker]:
        with self.bus, self.bus.worker(grace=5.0) as worker:
            yield worker


def client(server: RedisProcess) -> redis.Redis:
    return redis.Redis(port=server.port)


def test_a_wrong_password_is_denied_at_once_and_shown_nowhere() -> None:
    with RedisProcess(password="right-one") as server:
        with closing(Bus(server.url.replace("right-one", "wrong-one"))) as bus, pytest.raises(Denied) as found:
            bus.open(timeout=30)

        assert not found.value.retryable
        shown = f"{found.value!r} {found.value} {found.value.__cause__!r} {bus!r}"
        assert "wrong-one" not in shown
        with Bus(server.url) as allowed:
            allowed.publish(words, "the right one works")


def test_a_user_without_rights_to_our_keys_is_denied() -> None:
    users = {"app": RedisUser(password="pw", rules="~other:* &other:* +@all")}
    with RedisProcess(users=users) as server, pytest.raises(Denied), Bus(server.url_of("app")) as bus:
        bus.publish(words, "no")


def test_memory_is_full_publishes_fail_typed_while_consumers_go_on_settling() -> None:
    with RedisProcess(maxmemory="8mb", config={"maxmemory-policy": "noeviction"}) as server:
        gate = threading.Event()
        consumer = Consumer(server.url, gate=gate)
        with consumer.working():
            accepted = 0
            with pytest.raises(PublishFailed, match="memory") as found:
                while True:
                    consumer.bus.publish(words, "x" * 20_000)
                    accepted += 1
            assert found.value.retryable
            assert consumer.bus.publish_pump.trouble()

            gate.set()
            until(lambda: len(consumer.seen) == accepted)
            until(lambda: client(server).xlen("{mqkit}:q:words") == 0)
            consumer.bus.publish(words, "room again")
            until(lambda: consumer.seen[-1] == "room again")


@pytest.mark.parametrize("queue", [words, keyed], ids=lambda queue: queue.name)
def test_consumers_that_start_while_memory_is_full_make_room(queue: Queue[str]) -> None:
    with RedisProcess(maxmemory="8mb", config={"maxmemory-policy": "noeviction"}) as server, Bus(server.url) as bus:
        accepted = 0
        with pytest.raises(PublishFailed, match="memory"):
            while True:
                bus.publish(queue, f"{accepted:20000}")
                accepted += 1
        with pytest.raises(redis.OutOfMemoryError):
            client(server).set("anything", "small")

        consumer = Consumer(server.url, queue)
        with consumer.working():
            until(lambda: len(consumer.seen) == accepted)
            bus.publish(queue, "room again")
            until(lambda: consumer.seen[-1] == "room again")


def test_a_server_that_cannot_save_refuses_typed_and_nothing_is_lost_when_it_can_again(server: RedisProcess) -> None:
    gate = threading.Event()
    consumer = Consumer(server.url, gate=gate)
    with consumer.working(), client(server) as native:
        for number in range(10):
            consumer.bus.publish(words, str(number))
        until(lambda: native.xpending("{mqkit}:q:words", "mqkit")["pending"] == 10)
        blocked = server.folder / "dump.rdb"  # a folder in the place of the file: saving must fail
        blocked.mkdir()
        (blocked / "full").touch()
        native.config_set("save", "3600 1")
        native.bgsave()
        until(lambda: native.info("persistence")["rdb_last_bgsave_status"] == "err")

        with pytest.raises(PublishFailed, match="disk"):
            consumer.bus.publish(words, "no")
        gate.set()
        until(lambda: len(consumer.seen) == 10)
        native.config_set("save", "")
        until(lambda: native.xlen("{mqkit}:q:words") == 0)

    assert Counter(consumer.seen) == Counter(str(number) for number in range(10))


def test_a_restart_loses_nothing_and_consumers_come_back(server: RedisProcess) -> None:
    consumer = Consumer(server.url)
    with consumer.working():
        for number in range(50):
            consumer.bus.publish(words, str(number))
        server.kill()
        server.start()
        until(lambda: publish_again(consumer.bus, "after"))
        until(lambda: "after" in consumer.seen)
        until(lambda: set(consumer.seen) == {"after", *map(str, range(50))})


@pytest.mark.timeout(180)
def test_a_server_that_is_away_for_half_a_minute_loses_nothing_that_was_accepted(server: RedisProcess) -> None:
    consumer, publishing = Consumer(server.url), Bus(server.url)
    accepted: list[str] = []
    errors: list[MqkitError] = []
    enough = threading.Event()

    def publish() -> None:
        while not enough.is_set():
            word = str(len(accepted))
            try:
                publishing.publish(words, word, id=f"word {word}", timeout=2.0)
            except MqkitError as exc:
                errors.append(exc)
                enough.wait(0.2)
            else:
                accepted.append(word)

    publisher = threading.Thread(target=publish)
    with publishing, consumer.working():
        publisher.start()
        try:
            until(lambda: len(accepted) > 50)
            server.kill()
            killed, before = time.monotonic(), len(errors)
            until(lambda: time.monotonic() - killed > 30.0, within=60.0)
            assert not consumer.bus.health().ready
            server.start()
            goal = len(accepted) + 50
            until(lambda: len(accepted) > goal, within=60.0)
        finally:
            enough.set()
            publisher.join(30.0)
        until(lambda: set(accepted) <= set(consumer.seen), within=60.0)

    assert len(errors) > before
    assert {type(error) for error in errors} <= {PublishFailed, PublishUnknown, TimedOut, Unavailable}
    with Bus(server.url) as bus:
        assert bus.dead_letters(words).list() == []


def test_no_log_at_any_level_has_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="mqkit")  # an example that was imported may have raised it
    with RedisProcess(password="s3cret", appendonly=True) as server:
        consumer = Consumer(server.url)
        with consumer.working():
            consumer.bus.publish(words, "one")
            until(lambda: "one" in consumer.seen)
            server.kill()
            until(lambda: any(record.name == "mqkit" for record in caplog.records))
            server.start()
            until(lambda: publish_again(consumer.bus, "two"))
            until(lambda: "two" in consumer.seen)
        with closing(Bus(server.url.replace("s3cret", "s3cret-and-wrong"))) as denied, pytest.raises(Denied):
            denied.open(timeout=10.0)

    said = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "s3cret" not in said + caplog.text


def publish_again(bus: Bus, word: str) -> bool:
    try:
        bus.publish(words, word)
    except (PublishFailed, PublishUnknown, TimedOut, Unavailable):
        return False
    return True


def test_scripts_that_the_server_forgot_are_loaded_again(server: RedisProcess) -> None:
    consumer = Consumer(server.url)
    with consumer.working(), client(server) as native:
        for number in range(100):
            if number % 10 == 0:
                native.script_flush()
            consumer.bus.publish(words, str(number), delay=0.01 if number % 3 else 0.0)
        until(lambda: len(consumer.seen) == 100)
        until(lambda: native.xlen("{mqkit}:q:words") + native.xlen("{mqkit}:q:words/r") == 0)

    assert Counter(consumer.seen) == Counter(map(str, range(100)))


def test_scripts_that_were_forgotten_with_much_under_way_confuse_no_answers(server: RedisProcess) -> None:
    consumer, missing = Consumer(server.url), Queue("nobody declares it", str, declare=False)
    with consumer.working(), client(server) as native:
        lost = []
        for round in range(20):
            native.script_flush()
            for number in range(25):
                consumer.bus.publish_soon(words, f"{round} {number} delayed", delay=0.01)
                consumer.bus.publish_soon(words, f"{round} {number}")
            lost.append(consumer.bus.publish_soon(missing, "nowhere"))
            with pytest.raises(NotFound):
                consumer.bus.flush()
        until(lambda: len(consumer.seen) == 1000)
        until(lambda: native.xlen("{mqkit}:q:words") + native.xlen("{mqkit}:q:words/r") == 0)

    assert {type(future.exception(0)) for future in lost} == {NotFound}
    assert Counter(consumer.seen) == Counter(
        f"{round} {number}{kind}" for round in range(20) for number in range(25) for kind in ("", " delayed")
    )


def test_connections_that_are_killed_double_nothing_and_lose_nothing(server: RedisProcess) -> None:
    consumer = Consumer(server.url)
    publisher = Bus(server.url)
    with consumer.working(), client(server) as native:
        for number in range(300):
            publisher.publish(words, str(number))
            if number % 30 == 29:
                kill_readers(native)
        until(lambda: len(consumer.seen) >= 300)
        until(lambda: native.xlen("{mqkit}:q:words") == 0)
    publisher.close()

    # What runs when a connection breaks is settled by the next one: it is not handed out again.
    assert Counter(consumer.seen) == Counter(map(str, range(300)))


def test_keys_keep_their_order_and_their_attempts_over_killed_connections(server: RedisProcess) -> None:
    steps = Queue("steps", int, key=lambda number: str(number % 5))
    bus, publisher = Bus(server.url), Bus(server.url)
    done: list[int] = []
    attempts: dict[int, list[int]] = {}

    @bus.on(steps, concurrency=8, retry=Retry(attempts=5, backoff=fixed(0.02)))
    def handle(number: int, delivery: Delivery[int]) -> None:
        attempts.setdefault(number, []).append(delivery.attempt)
        if number % 7 == 0 and delivery.attempt < 3:
            raise ConnectionError("not yet")
        done.append(number)

    with bus, bus.worker(grace=5.0), client(server) as native:
        for number in range(300):
            publisher.publish(steps, number)
            if number % 30 == 29:
                kill_readers(native)
        until(lambda: len(done) >= 300)
        until(lambda: native.xlen("{mqkit}:q:steps") == 0)
        assert native.exists("{mqkit}:q:steps/l", "{mqkit}:q:steps/w", "{mqkit}:q:steps/k", "{mqkit}:q:steps/n") == 0
    publisher.close()

    assert all([number for number in done if number % 5 == key] == list(range(key, 300, 5)) for key in range(5))
    assert all(attempts[number] == ([1, 2, 3] if number % 7 == 0 else [1]) for number in range(300))


def kill_readers(native: redis.Redis) -> None:
    """The connections that wait for messages, and those beside them."""
    for one in native.client_list():
        if one["cmd"] in ("xreadgroup", "evalsha"):
            native.execute_command("CLIENT", "KILL", "ID", one["id"])


def test_a_hung_server_is_noticed_and_afterwards_everything_goes_on(server: RedisProcess) -> None:
    consumer = Consumer(f"{server.url}?timeout=3.0&lease=60")
    with consumer.working():
        consumer.bus.publish(words, "before")
        until(lambda: consumer.seen == ["before"])
        server.freeze()
        with pytest.raises(PublishUnknown):
            consumer.bus.publish(words, "during", timeout=20.0)
        until(lambda: not consumer.bus.health().ready)
        server.thaw()
        until(lambda: publish_again(consumer.bus, "after"))
        until(lambda: "after" in consumer.seen)
        until(lambda: consumer.bus.health().ready)


def test_a_deleted_stream_or_group_is_made_again(server: RedisProcess) -> None:
    consumer = Consumer(server.url)
    with consumer.working(), client(server) as native:
        consumer.bus.publish(words, "before")
        until(lambda: consumer.seen == ["before"])
        native.xgroup_destroy("{mqkit}:q:words", "mqkit")
        until(lambda: native.xinfo_groups("{mqkit}:q:words"))
        consumer.bus.publish(words, "after the group")
        until(lambda: consumer.seen[-1] == "after the group")
        native.delete("{mqkit}:q:words")
        until(lambda: native.exists("{mqkit}:q:words"))
        consumer.bus.publish(words, "after the stream")
        until(lambda: consumer.seen[-1] == "after the stream")
        native.flushall()
        consumer.bus.publish(words, "after everything")
        until(lambda: consumer.seen[-1] == "after everything")


@pytest.mark.parametrize(("dedupe", "stored"), [(60.0, 1), (0.0, 2)])
def test_a_lost_reply_doubles_nothing_where_ids_are_remembered(
    server: RedisProcess, dedupe: float, stored: int
) -> None:
    careful = Queue("careful", str, native=RedisQueue(dedupe=dedupe))
    with FaultProxy("127.0.0.1", server.port) as proxy, Bus(proxy.through(server.url)) as bus:
        bus.declare(careful)
        proxy.freeze_replies()
        pending = bus.publish_soon(careful, "once", id="the-one")
        with client(server) as native:
            until(lambda: native.xlen("{mqkit}:q:careful") == 1)
            proxy.reset()
            proxy.thaw()
            with pytest.raises(PublishUnknown):
                pending.result(30)

            bus.publish(careful, "once", id="the-one")

            assert native.xlen("{mqkit}:q:careful") == stored
        with pytest.raises(PublishUnknown):
            bus.flush()


def test_an_id_is_remembered_whoever_publishes_it_and_a_replay_is_no_publish(server: RedisProcess) -> None:
    careful = Queue("careful", str, native=RedisQueue(dedupe=60.0))
    with Bus(server.url) as bus, client(server) as native:

        @bus.on(words)
        def handle(word: str, delivery: Delivery[str]) -> None:
            delivery.publish(careful, word, id="the-one")

        bus.declare(careful)
        bus.publish_many(words, ["first", "second"])
        with bus.worker():
            until(lambda: native.xlen("{mqkit}:q:words") == 0)
        stored = native.xlen("{mqkit}:q:careful")
        with bus.subscription(careful) as messages:
            [delivery] = messages.receive(max=1, timeout=10.0)
            delivery.reject("for the test")
        until(lambda: bus.dead_letters(careful).list())
        replayed = bus.dead_letters(careful).replay()

        assert (stored, replayed, native.xlen("{mqkit}:q:careful")) == (1, 1, 1)


def test_a_server_that_evicts_messages_is_refused_unless_that_is_accepted() -> None:
    with RedisProcess(maxmemory="64mb", config={"maxmemory-policy": "allkeys-lru"}) as server:
        with pytest.raises(ConfigError, match="allkeys-lru"), Bus(server.url) as bus:
            bus.publish(words, "no")
        with Bus(f"{server.url}?evict=allow") as bus:
            bus.publish(words, "yes")
        assert any("allkeys-lru" in warning for warning in backend_of(f"{server.url}?evict=allow").warnings())


def test_what_a_crash_may_lose_is_said(server: RedisProcess) -> None:
    with RedisProcess() as volatile:
        assert any("append-only" in warning for warning in backend_of(volatile.url).warnings())
    assert list(backend_of(server.url).warnings()) == []


def test_a_publish_waits_for_the_replicas_it_asked_for(server: RedisProcess) -> None:
    with Bus(f"{server.url}?wait_replicas=1&timeout=2") as hasty, pytest.raises(PublishUnknown, match="0 of 1"):
        hasty.publish(words, "nobody has it yet")
    bus = Bus(f"{server.url}?wait_replicas=1&timeout=20")
    with RedisProcess(config={"replicaof": f"127.0.0.1 {server.port}"}), client(server) as native:
        until(lambda: native.info("replication")["connected_slaves"] == 1)
        until(lambda: native.wait(1, 1000) == 1)
        bus.publish(words, "it is on both")
    bus.close()


def test_a_replica_takes_no_publish(server: RedisProcess) -> None:
    with RedisProcess(config={"replicaof": f"127.0.0.1 {server.port}"}) as replica:
        with Bus(replica.url) as bus, pytest.raises(MqkitError, match="replica") as found:
            bus.publish(words, "no", timeout=3.0)
    assert found.value.retryable


def test_a_topic_keeps_what_a_slow_group_has_not_read_and_nothing_more(server: RedisProcess) -> None:
    orders, bus, quick = Topic("orders", int, groups=["quick", "slow"]), Bus(server.url), []
    bus.on(orders, group="quick")(quick.append)
    with bus, bus.worker(), client(server) as native:
        for number in range(500):
            bus.publish_soon(orders, number)
        bus.flush()
        until(lambda: len(quick) == 500)
        assert native.xlen("{mqkit}:t:orders") == 500

        slow = []
        other = Bus(server.url)
        other.on(orders, group="slow")(slow.append)
        with other, other.worker():
            until(lambda: len(slow) == 500)
            until(lambda: native.xlen("{mqkit}:t:orders") == 0)

    assert sorted(quick) == sorted(slow) == list(range(500))


def test_a_topic_that_retains_forgets_what_is_older_also_when_nobody_consumes(server: RedisProcess) -> None:
    news, stream = Topic("news", int, native=RedisTopic(retain=0.5)), "{mqkit}:t:news"
    with Bus(server.url) as bus, client(server) as native:
        bus.publish(news, 0)
        [(first, _)] = native.xrange(stream, count=1)

        until(lambda: bus.publish(news, 1) and native.xrange(stream, count=1)[0][0] != first)

        assert native.xlen(stream) > 0


def test_something_else_that_listens_is_told_from_redis() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ConfigError, match="protocol"):
            backend_of(f"redis://127.0.0.1:{port}").publisher()
        thread.join()


def test_nobody_listens_is_unavailable_at_once() -> None:
    with RedisProcess() as server:
        url = server.url
    with pytest.raises(Unavailable):
        backend_of(url).publisher()
