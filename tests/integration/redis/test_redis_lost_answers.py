"""What a consumer of Redis holds and has not heard of, and locks whose messages are gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
import redis

from mqkit import Bus, Queue
from mqkit.backends.base import Done, Received, Receiver, Release
from mqkit.backends.redis.receiver import RedisReceiver
from mqkit.backends.redis.scripts import KEYED_SETTLE, KEYED_TAKE, Script
from mqkit.errors import Unavailable
from mqkit.testing.brokers import RedisProcess
from mqkit.testing.chaos import FaultProxy
from tests.integration.receivers import declaration_of, is_lost, isolates_in_vain, receiver_of
from tests.unit.waiting import until

pytestmark = pytest.mark.slow

plain = Queue("plain", str)
keyed = Queue("keyed", str, key=lambda word: word.split()[0])
both = pytest.mark.parametrize("queue", [plain, keyed], ids=lambda queue: queue.name)


@contextmanager
def receiving(url: str, queue: Queue[str]) -> Iterator[Receiver]:
    """At the seam below the core, which would give messages back by itself."""
    with Bus(url) as bus:
        with closing(bus.link.backend.admin()) as admin:
            admin.declare([declaration_of(bus, queue)])
        with closing(receiver_of(bus, queue)) as receiver:
            yield receiver


def received(receiver: Receiver, count: int) -> list[Received]:
    """So many, also if the connection breaks on the way, as a slow machine may have it."""
    found: list[Received] = []

    def enough() -> bool:
        with contextlib.suppress(Unavailable):
            found.extend(receiver.receive(count - len(found), 0.1).deliveries)
        return len(found) == count

    until(enough)
    return found


def connect_again(proxy: FaultProxy, receiver: Receiver) -> None:
    proxy.reset()
    until(lambda: is_lost(receiver))
    receiver.receive(0, 0.0)


def client(server: RedisProcess) -> redis.Redis:
    return redis.Redis(port=server.port)


def test_what_comes_to_a_connection_that_broke_is_handed_out_all_the_same(
    server: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RedisReceiver, "look_again_after", 1.0)
    stream = "{mqkit}:q:plain"
    with FaultProxy("127.0.0.1", server.port) as proxy, receiving(proxy.through(server.url), plain) as receiver:
        connect_again(proxy, receiver)
        with Bus(server.url) as bus, client(server) as native:
            [consumer] = native.zrange("{mqkit}:own", 0, -1)
            bus.publish(plain, "late")
            # The read of the old connection reaches the server only now.
            native.xreadgroup("mqkit", consumer, {stream: ">"}, count=10)

            [late] = received(receiver, 1)
            receiver.settle([Done(late)])
            receiver.flush(5.0)

            assert native.xlen(stream) == 0
    assert late.body == b'"late"'


def test_what_an_earlier_connection_asks_for_late_is_refused(server: RedisProcess) -> None:
    with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        receiving(proxy.through(server.url), keyed) as receiver,
        Bus(server.url) as bus,
        client(server) as native,
    ):
        [consumer] = native.zrange("{mqkit}:own", 0, -1)
        source = "{mqkit}:q:keyed"
        keys = ["{mqkit}:own", *(source + end for end in ("/l", "/w", "/k", "/n", "/s"))]
        before = [consumer, 30_000, "mqkit", 1, 1, source]

        def late(script: Script, *arguments: object) -> object:
            return native.evalsha(script.sha, len(keys), *keys, *before, *arguments)  # type: ignore[arg-type]

        assert late(KEYED_TAKE, 10, 10)[0] == b"ok"  # type: ignore[index]
        connect_again(proxy, receiver)
        bus.publish(keyed, "a first")
        bus.publish(keyed, "a second")

        taken = late(KEYED_TAKE, 10, 10)
        deliveries = received(receiver, 2)
        settled = [late(KEYED_SETTLE, "A", 1, each.native.id, "a", 0, 0) for each in deliveries]
        receiver.settle([Done(each) for each in deliveries])
        turn = receiver.flush(5.0)

    assert [taken, *settled] == [[b"stale"]] * 3
    assert [each.body for each in deliveries] == [b'"a first"', b'"a second"']
    assert list(turn.refused) == []


def test_a_message_in_a_lost_answer_does_not_pass_the_one_before_it_of_its_key(server: RedisProcess) -> None:
    with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        receiving(proxy.through(server.url), keyed) as receiver,
        Bus(server.url) as bus,
        client(server) as native,
    ):
        bus.publish(keyed, "a first")
        [first] = received(receiver, 1)
        taking = threading.Thread(target=lambda: until(lambda: is_lost(receiver, room=1)))
        proxy.freeze_replies()
        bus.publish(keyed, "a second")
        taking.start()
        until(lambda: native.hget("{mqkit}:q:keyed/l", "ka").endswith(b"|2|0"))
        proxy.reset()
        proxy.thaw()
        taking.join(30.0)

        receiver.settle([Release(first, after=0.0, attempt=2, since=0.0)])
        [again] = received(receiver, 1)
        receiver.settle([Done(again)])
        [second] = received(receiver, 1)

    assert (again.body, second.body) == (b'"a first"', b'"a second"')
    assert (again.deliveries, second.deliveries) == (2, 1)


@both
def test_a_message_is_not_suspected_of_what_nobody_knows_whether_it_was_noted(
    server: RedisProcess, queue: Queue[str]
) -> None:
    """That it is about to run alone reaches the server, and the answer does not come back."""
    with Bus(server.url) as bus:
        bus.publish(queue, "a suspect")
        with FaultProxy("127.0.0.1", server.port) as proxy, client(server) as native:
            with receiving(proxy.through(server.url), queue) as receiver:
                [suspect] = received(receiver, 1)
                receiver.flush(5.0)
                proxy.freeze_replies()
                noting = threading.Thread(target=lambda: until(lambda: isolates_in_vain(receiver, suspect)))
                noting.start()
                until(lambda: native.hlen(f"{{mqkit}}:q:{queue.name}/s") == 1)
                proxy.reset()
                proxy.thaw()
                noting.join(30.0)
            with receiving(server.url, queue) as receiver:
                [again] = received(receiver, 1)

    assert (again.id, again.solo) == (suspect.id, 0)


def fields_without_a_body(native: redis.Redis) -> None:
    for _ in range(2):
        native.xadd("{mqkit}:q:keyed", {"key": "a", "price": "5"})


def a_key_that_is_no_text(native: redis.Redis) -> None:
    for _ in range(2):
        native.xadd("{mqkit}:q:keyed", {"key": b"\xff", "body": "5"})


def a_key_that_is_said_twice(native: redis.Redis) -> None:
    native.execute_command("XADD", "{mqkit}:q:keyed", "*", "key", "", "key", "a", "key", "b", "body", "5")
    native.xadd("{mqkit}:q:keyed", {"key": "b", "body": "5"})


@pytest.mark.parametrize(
    "publish", [fields_without_a_body, a_key_that_is_no_text, a_key_that_is_said_twice], ids=lambda way: way.__name__
)
def test_the_keys_of_foreign_messages_are_free_again(
    server: RedisProcess, publish: Callable[[redis.Redis], None]
) -> None:
    with receiving(server.url, keyed) as receiver, client(server) as native:
        publish(native)
        for first in received(receiver, 2):
            receiver.settle([Done(first)])
        receiver.flush(5.0)

        assert native.hgetall("{mqkit}:q:keyed/l") == {}


def test_a_key_is_free_when_the_messages_that_locked_it_were_deleted(server: RedisProcess) -> None:
    stream = "{mqkit}:q:keyed"
    with receiving(f"{server.url}?lease=2", keyed) as receiver, Bus(server.url) as bus, client(server) as native:
        with receiving(server.url, keyed) as holder:
            bus.publish(keyed, "a held")
            received(holder, 1)
            bus.publish(keyed, "a waiting")
            until(lambda: receiver.receive(1, 0.1).deliveries or native.exists("{mqkit}:q:keyed/w"))
            [pending] = native.xpending_range(stream, "mqkit", "-", "+", 1)
            native.xack(stream, "mqkit", pending["message_id"])
            native.xdel(stream, pending["message_id"])

            [next_one] = received(receiver, 1)

    assert next_one.body == b'"a waiting"'


def test_a_key_is_free_when_the_stream_was_deleted_that_had_its_message(server: RedisProcess) -> None:
    with receiving(server.url, keyed) as holder, Bus(server.url) as bus, client(server) as native:
        bus.publish(keyed, "a held")
        received(holder, 1)
        native.delete("{mqkit}:q:keyed")
        with receiving(server.url, keyed) as receiver:
            bus.publish(keyed, "a next")

            [next_one] = received(receiver, 1)

    assert next_one.body == b'"a next"'


@both
def test_consumers_that_died_long_ago_leave_nothing(server: RedisProcess, queue: Queue[str]) -> None:
    with receiving(server.url, queue) as receiver, client(server) as native:
        native.zadd("{mqkit}:own", {"declared dead": -1e12, "never noticed": 1e12})

        until(lambda: receiver.receive(1, 0.1) and native.zcard("{mqkit}:own") == 1)

        [alive] = native.zrange("{mqkit}:own", 0, -1)
    assert alive not in (b"declared dead", b"never noticed")
