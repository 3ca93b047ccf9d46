"""pika alone, on a server that is started for the occasion: the fastest and the usual way to publish and to consume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pika
from pika.adapters.select_connection import IOLoop

from benchmarks.sample import LARGE, Sample, Stopwatch
from mqkit.testing.brokers import RabbitProcess

MESSAGES = 20_000
WINDOW = 1000
QUEUE = "documents"
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 2**31 - 1}

encode = msgspec.json.Encoder().encode


@contextmanager
def server_url() -> Iterator[str]:
    """Of a server of our own, or the one that MQKIT_BENCH_RABBITMQ names."""
    if url := os.environ.get("MQKIT_BENCH_RABBITMQ"):
        yield url
        return
    with RabbitProcess(management=False) as process:
        yield process.url


def publish() -> Sample:
    """SelectConnection, persistent, confirmed, a window of 1000."""
    with server_url() as url:
        declare(url)
        watch = Stopwatch()
        _publish_pipelined(url, MESSAGES)
        return watch.sample(MESSAGES)


def consume() -> Sample:
    """BlockingConnection, prefetch 1000, each message acknowledged by itself."""
    with server_url() as url:
        declare(url)
        _publish_pipelined(url, MESSAGES)
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=WINDOW)
        watch = Stopwatch()
        for count, (method, _, body) in enumerate(channel.consume(QUEUE), 1):
            msgspec.json.decode(body)
            channel.basic_ack(method.delivery_tag)
            if count == MESSAGES:
                break
        sample = watch.sample(MESSAGES)
        connection.close()
        return sample


def declare(url: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_delete(QUEUE)
    channel.queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    connection.close()


def _publish_pipelined(url: str, count: int) -> None:
    loop, opened = IOLoop(), list[Any]()
    loop.activate_poller()
    connection = pika.SelectConnection(pika.URLParameters(url), on_open_callback=opened.append, custom_ioloop=loop)
    _step_until(loop, lambda: opened)
    channels: list[Any] = []
    connection.channel(on_open_callback=channels.append)
    _step_until(loop, lambda: channels)
    [channel] = channels
    state = {"sent": 0, "confirmed": 0}

    def confirmed(frame: Any) -> None:
        method = frame.method
        state["confirmed"] = max(state["confirmed"], method.delivery_tag) if method.multiple else state["confirmed"] + 1

    ready: list[Any] = []
    channel.confirm_delivery(confirmed, callback=ready.append)
    _step_until(loop, lambda: ready)
    properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
    while state["confirmed"] < count:
        while state["sent"] < count and state["sent"] - state["confirmed"] < WINDOW:
            properties.message_id = f"{state['sent']:032}"
            channel.basic_publish("", QUEUE, encode(LARGE), properties, mandatory=True)
            state["sent"] += 1
        _step(loop)
    connection.close()
    _step_until(loop, lambda: connection.is_closed)


def _step_until(loop: Any, condition: Any) -> None:
    until = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < until
        _step(loop)


def _step(loop: Any) -> None:
    timer = loop.call_later(0.1, lambda: None)
    loop.poll()
    loop.process_timeouts()
    loop.remove_timeout(timer)
