"""confluent-kafka, aiokafka and FastStream on Kafka: idempotent, confirmed by all replicas, committed after the handler."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from confluent_kafka import Consumer, Producer
from faststream import AckPolicy
from faststream.confluent import KafkaBroker

from benchmarks.kafka_raw import GROUP, TOGETHER, TOPIC, TUNED, decode, encode, fill, topic
from benchmarks.kafka_raw import MESSAGES as MANY
from benchmarks.sample import LARGE, Sample, Stopwatch

MESSAGES = 10_000  # of FastStream, a quarter of ours: it is slower
COMMITTED = 2_000  # ... where it waits for a commit after each
AT_ONCE = 100  # publishes that FastStream waits for at once


def confluent_publish() -> Sample:
    """A C library, with a callback for each message."""
    with topic() as address:
        producer = Producer({"bootstrap.servers": address, "enable.idempotence": True, "linger.ms": 5})
        producer.list_topics(TOPIC, timeout=10)
        confirmed: list[Any] = []
        watch = Stopwatch()
        for _ in range(MANY):
            producer.produce(TOPIC, encode(LARGE), on_delivery=lambda error, _: confirmed.append(error))
            producer.poll(0)
        producer.flush(60)
        sample = watch.sample(MANY)
        if confirmed != [None] * MANY:
            raise ValueError(f"{confirmed.count(None)} of {MANY} were confirmed")
        return sample


def confluent_consume() -> Sample:
    with topic() as address:
        fill(address, MANY, **TUNED)
        consumer = Consumer(
            {
                "bootstrap.servers": address,
                "group.id": GROUP,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([TOPIC])
        handled, watch, uncounted = 0, None, 0
        while handled < MANY:
            first = consumer.poll(1.0)  # for `consume` waits until it has as many as it was asked for
            if first is None:
                continue
            records = [first, *consumer.consume(TOGETHER - 1, 0)]
            for record in records:
                decode(record.value())
            handled += len(records)
            if watch is None:
                watch, uncounted = Stopwatch(), handled
            consumer.commit(asynchronous=True)
        assert watch is not None
        sample = watch.sample(handled - uncounted)
        consumer.close()
        return sample


def aiokafka_publish() -> Sample:
    with topic() as address:
        return asyncio.run(_aiokafka_publish(address))


async def _aiokafka_publish(address: str) -> Sample:
    async with AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True, acks="all") as producer:
        await producer.partitions_for(TOPIC)
        watch = Stopwatch()
        futures = [await producer.send(TOPIC, encode(LARGE)) for _ in range(MANY)]
        await asyncio.gather(*futures)
        return watch.sample(MANY)


def aiokafka_consume() -> Sample:
    with topic() as address:
        fill(address, MANY, **TUNED)
        return asyncio.run(_aiokafka_consume(address))


async def _aiokafka_consume(address: str) -> Sample:
    options = {"group_id": GROUP, "auto_offset_reset": "earliest", "enable_auto_commit": False}
    async with AIOKafkaConsumer(TOPIC, bootstrap_servers=address, **options) as consumer:
        handled, watch, uncounted = 0, None, 0
        while handled < MANY:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=TOGETHER)).values():
                for record in records:
                    decode(record.value)
                handled += len(records)
            if watch is None and handled:
                watch, uncounted = Stopwatch(), handled
            if handled:
                await consumer.commit()
        assert watch is not None
        return watch.sample(handled - uncounted)


def faststream_publish() -> Sample:
    """Through confluent-kafka."""
    with topic() as address:
        return asyncio.run(_faststream_publish(address))


async def _faststream_publish(address: str) -> Sample:
    async with KafkaBroker(address, logger=None, acks="all", enable_idempotence=True) as broker:
        await broker.publish(LARGE, TOPIC)
        watch = Stopwatch()
        for _ in range(0, MESSAGES, AT_ONCE):
            await asyncio.gather(*[broker.publish(LARGE, TOPIC) for _ in range(AT_ONCE)])
        return watch.sample(MESSAGES)


def faststream_consume() -> Sample:
    """It commits after each message, and waits for that."""
    with topic() as address:
        fill(address, COMMITTED, **TUNED)
        return asyncio.run(_faststream_consume(address))


async def _faststream_consume(address: str) -> Sample:
    broker, begun, done = KafkaBroker(address, logger=None), asyncio.Event(), asyncio.Event()
    handled: list[Any] = []

    @broker.subscriber(TOPIC, group_id=GROUP, auto_offset_reset="earliest", ack_policy=AckPolicy.ACK)
    async def handle(body: dict[str, str]) -> None:
        handled.append(body)
        begun.set()
        if len(handled) == COMMITTED:
            done.set()

    async with broker:
        await broker.start()
        await asyncio.wait_for(begun.wait(), 60.0)
        uncounted, watch = len(handled), Stopwatch()
        await asyncio.wait_for(done.wait(), 120.0)
        return watch.sample(COMMITTED - uncounted)
