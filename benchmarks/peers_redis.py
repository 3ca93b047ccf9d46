"""FastStream, Kombu and Dramatiq on Redis: what each keeps there until its handler has returned."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from dramatiq.brokers.redis import RedisBroker as DramatiqBroker
from faststream.redis import RedisBroker, StreamSub
from kombu import Connection

from benchmarks import peers_dramatiq
from benchmarks.sample import LARGE, Sample, Stopwatch
from mqkit.testing.brokers import RedisProcess

MESSAGES = 5_000  # a twelfth of ours: they are slower
TOGETHER = 100  # publishes that FastStream waits for at once
STREAM = "documents"


def faststream_publish() -> Sample:
    with RedisProcess() as server:
        return asyncio.run(_faststream(server.url, consume=False))


def faststream_consume() -> Sample:
    """A stream with a consumer group; it acknowledges each message by itself."""
    with RedisProcess() as server:
        with redis.Redis(port=server.port) as db:
            db.xgroup_create(STREAM, "workers", "0", mkstream=True)
        return asyncio.run(_faststream(server.url, consume=True))


async def _faststream(url: str, *, consume: bool) -> Sample:
    broker, done = RedisBroker(url, logger=None), asyncio.Event()
    handled: list[Any] = []

    if consume:

        @broker.subscriber(stream=StreamSub(STREAM, group="workers", consumer="me", max_records=100, last_id=">"))
        async def handle(body: dict[str, str]) -> None:
            handled.append(body)
            if len(handled) == MESSAGES:
                done.set()

    async with broker:
        await broker.connect()
        watch = Stopwatch()
        for _ in range(0, MESSAGES, TOGETHER):
            await asyncio.gather(*[broker.publish(LARGE, stream=STREAM) for _ in range(TOGETHER)])
        if consume:
            watch = Stopwatch()
            await broker.start()
            await asyncio.wait_for(done.wait(), 120.0)
        return watch.sample(MESSAGES)


def kombu_publish() -> Sample:
    with _kombu() as queue:
        return _kombu_fill(queue)


def kombu_consume() -> Sample:
    with _kombu() as queue:
        _kombu_fill(queue)
        watch = Stopwatch()
        for _ in range(MESSAGES):
            message = queue.get(timeout=10)
            assert message.payload
            message.ack()
        return watch.sample(MESSAGES)


@contextmanager
def _kombu() -> Iterator[Any]:
    with RedisProcess() as server, Connection(server.url) as connection:
        queue = connection.SimpleQueue(STREAM)
        yield queue
        queue.close()


def _kombu_fill(queue: Any) -> Sample:
    watch = Stopwatch()
    for _ in range(MESSAGES):
        queue.put(LARGE, serializer="json")
    return watch.sample(MESSAGES)


def dramatiq_publish() -> Sample:
    with RedisProcess() as server:
        return peers_dramatiq.publish(DramatiqBroker(url=server.url, middleware=[]), MESSAGES)


def dramatiq_consume() -> Sample:
    with RedisProcess() as server:
        return peers_dramatiq.consume(DramatiqBroker(url=server.url, middleware=[]), MESSAGES)
