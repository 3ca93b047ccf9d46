"""Kombu, FastStream and Dramatiq on RabbitMQ: durable, persistent, confirmed, acknowledged after the handler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dramatiq.brokers.rabbitmq import RabbitmqBroker
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue
from kombu import Connection, Consumer, Producer
from kombu import Queue as KombuQueue

from benchmarks import peers_dramatiq
from benchmarks.rabbitmq_raw import ARGUMENTS, QUEUE, WINDOW, declare, server_url
from benchmarks.sample import LARGE, Sample, Stopwatch

MESSAGES = 5_000  # a quarter of ours: they are slower
TOGETHER = 100  # publishes that FastStream waits for at once


def kombu_publish() -> Sample:
    with _kombu() as (connection, queue):
        return _kombu_fill(connection, queue)


def kombu_consume() -> Sample:
    with _kombu() as (connection, queue):
        _kombu_fill(connection, queue)
        handled: list[Any] = []

        def handle(body: Any, message: Any) -> None:
            handled.append(body)
            message.ack()

        with Consumer(connection, [queue], callbacks=[handle], prefetch_count=WINDOW):
            watch = Stopwatch()
            while len(handled) < MESSAGES:
                connection.drain_events(timeout=10)
            return watch.sample(MESSAGES)


@contextmanager
def _kombu() -> Iterator[tuple[Any, Any]]:
    with server_url() as url:
        declare(url)
        with Connection(url, transport_options={"confirm_publish": True}) as connection:
            yield connection, KombuQueue(QUEUE, durable=True, queue_arguments=ARGUMENTS)


def _kombu_fill(connection: Any, queue: Any) -> Sample:
    """Each publish waits for its confirm; there is no other confirmed one."""
    producer = Producer(connection, serializer="json")
    watch = Stopwatch()
    for _ in range(MESSAGES):
        producer.publish(LARGE, routing_key=queue.name, delivery_mode=2)
    return watch.sample(MESSAGES)


def faststream_publish() -> Sample:
    with server_url() as url:
        declare(url)
        return asyncio.run(_faststream(url, consume=False))


def faststream_consume() -> Sample:
    with server_url() as url:
        declare(url)
        return asyncio.run(_faststream(url, consume=True))


async def _faststream(url: str, *, consume: bool) -> Sample:
    broker = RabbitBroker(url, default_channel=Channel(prefetch_count=WINDOW), logger=None)
    queue, done = RabbitQueue(QUEUE, durable=True, arguments=ARGUMENTS), asyncio.Event()
    handled: list[Any] = []

    if consume:

        @broker.subscriber(queue)
        async def handle(body: dict[str, str]) -> None:
            handled.append(body)
            if len(handled) == MESSAGES:
                done.set()

    async with broker:
        watch = Stopwatch()
        for _ in range(0, MESSAGES, TOGETHER):
            await asyncio.gather(*[broker.publish(LARGE, queue, persist=True) for _ in range(TOGETHER)])
        if consume:
            watch = Stopwatch()
            await broker.start()
            await asyncio.wait_for(done.wait(), 120.0)
        return watch.sample(MESSAGES)


def dramatiq_publish() -> Sample:
    """Its queues are classic ones."""
    with server_url() as url:
        return peers_dramatiq.publish(RabbitmqBroker(url=url, confirm_delivery=True, middleware=[]), MESSAGES)


def dramatiq_consume() -> Sample:
    with server_url() as url:
        return peers_dramatiq.consume(RabbitmqBroker(url=url, confirm_delivery=True, middleware=[]), MESSAGES)
