"""All contests with their goals."""

from __future__ import annotations

from benchmarks import (
    footprint,
    kafka,
    kafka_raw,
    memory,
    peers,
    peers_kafka,
    peers_rabbitmq,
    peers_redis,
    peers_sqs,
    rabbitmq,
    rabbitmq_raw,
    redis,
    redis_raw,
    sqlite,
    sqlite_raw,
    sqs,
    sqs_raw,
)
from benchmarks.contest import Contest, Goal
from benchmarks.footprint import MEGABYTES, MILLISECONDS
from benchmarks.sample import CPU, MEDIAN, RATE
from benchmarks.sqs_raw import CALLS

CONTESTS = (
    Contest(
        "memory",
        {"publish and handle": memory.publish_and_handle, "with an async handler": memory.publish_and_handle_async},
        (
            Goal("publish and handle", RATE, least=100_000),
            Goal("with an async handler", CPU, most=10.0, against="publish and handle", by="difference"),
        ),
        "One process, one thread that calls publish_soon, small JSON documents, handlers that do nothing.",
    ),
    Contest(
        "engine",
        {
            "bare loop over a deque": memory.bare_loop,
            "handle, raw bytes": memory.handle_raw,
            "handle, JSON": memory.handle_json,
        },
        (
            Goal("handle, raw bytes", CPU, most=3.0, against="bare loop over a deque", by="difference"),
            Goal("handle, JSON", CPU, most=10.0),
        ),
        "Messages that wait in memory:// already are received, decoded, handed to a handler and settled.",
    ),
    Contest(
        "sqlite-publish",
        {
            "sqlite3, group commit": sqlite_raw.publish,
            "mqkit publish_soon": sqlite.publish,
            "sqlite3, one by one": sqlite_raw.publish_one_by_one,
            "mqkit publish": sqlite.publish_waiting,
            "huey": peers.huey_publish,
            "kombu": peers.kombu_publish,
        },
        (Goal("mqkit publish_soon", RATE, least=0.5, against="sqlite3, group commit"),),
        "Documents of 1 KiB, WAL, synchronous=FULL. huey and kombu wait for every message: compare them with `mqkit publish`.",
    ),
    Contest(
        "sqlite-consume",
        {
            "sqlite3, 100 at a time": sqlite_raw.consume,
            "sqlite3, 1000 at a time": sqlite_raw.consume_by_1000,
            "mqkit": sqlite.consume,
            "huey": peers.huey_consume,
            "kombu": peers.kombu_consume,
        },
        (
            Goal("mqkit", RATE, least=0.4, against="sqlite3, 100 at a time"),
            Goal("mqkit", RATE, least=5.0, against="huey"),
        ),
        "As before. mqkit takes up to 1000 at a time when handlers are fast, so on a slow disk it waits less often than a loop "
        "that takes 100. huey deletes a task before it runs it, the others settle afterwards.",
    ),
    Contest(
        "sqlite-threads",
        {"1 thread": sqlite.publish_waiting, "8 threads": sqlite.publish_waiting_from_8_threads},
        (Goal("8 threads", RATE, least=3.0, against="1 thread"),),
        "Every thread waits for each of its publishes; those that wait at the same time share a commit.",
    ),
    Contest(
        "rabbitmq-publish",
        {
            "pika SelectConnection": rabbitmq_raw.publish,
            "mqkit publish_soon": rabbitmq.publish,
            "faststream": peers_rabbitmq.faststream_publish,
            "kombu": peers_rabbitmq.kombu_publish,
            "dramatiq": peers_rabbitmq.dramatiq_publish,
        },
        (
            Goal("mqkit publish_soon", RATE, least=1.0, against="pika SelectConnection"),
            Goal("mqkit publish_soon", RATE, least=4.0, against="faststream"),
        ),
        "Documents of 1 KiB to a quorum queue, persistent, mandatory, confirmed, 1000 on their way at a time. faststream waits "
        "for 100 at once; kombu and dramatiq (on a classic queue) wait for each.",
    ),
    Contest(
        "rabbitmq-consume",
        {
            "pika BlockingConnection": rabbitmq_raw.consume,
            "mqkit": rabbitmq.consume,
            "faststream": peers_rabbitmq.faststream_consume,
            "kombu": peers_rabbitmq.kombu_consume,
            "dramatiq": peers_rabbitmq.dramatiq_consume,
        },
        (
            Goal("mqkit", RATE, least=1.8, against="pika BlockingConnection"),
            Goal("mqkit", RATE, least=5.0, against="faststream"),
            Goal("mqkit", RATE, least=2.5, against="kombu"),
        ),
        "As before, prefetch 1000 but for dramatiq, which has its own; mqkit acknowledges those that are done at once, the "
        "others each message by itself.",
    ),
    Contest(
        "redis-publish",
        {
            "redis-py, pipeline of 100": redis_raw.publish,
            "mqkit publish_soon": redis.publish,
            "faststream": peers_redis.faststream_publish,
            "kombu": peers_redis.kombu_publish,
            "dramatiq": peers_redis.dramatiq_publish,
        },
        (
            Goal("mqkit publish_soon", RATE, least=0.8, against="redis-py, pipeline of 100"),
            Goal("mqkit publish_soon", RATE, least=6.0, against="faststream"),
        ),
        "Documents of 1 KiB, a server without a disk on the same machine, one producer thread. faststream waits for 100 "
        "at once, kombu and dramatiq (on lists) for each.",
    ),
    Contest(
        "redis-consume",
        {
            "redis-py, 100 at a time": redis_raw.consume,
            "mqkit": redis.consume,
            "faststream": peers_redis.faststream_consume,
            "kombu": peers_redis.kombu_consume,
            "dramatiq": peers_redis.dramatiq_consume,
        },
        (
            Goal("mqkit", RATE, least=0.5, against="redis-py, 100 at a time"),
            Goal("mqkit", RATE, least=12.0, against="faststream"),
        ),
        "As before. redis-py only acknowledges; mqkit also deletes what is settled, behind a fence, and holds a lease.",
    ),
    Contest(
        "kafka-publish",
        {
            "kafka-python, defaults": kafka_raw.publish,
            "kafka-python, tuned": kafka_raw.publish_tuned,
            "mqkit publish_soon": kafka.publish,
            "aiokafka": peers_kafka.aiokafka_publish,
            "faststream": peers_kafka.faststream_publish,
            "confluent-kafka": peers_kafka.confluent_publish,
        },
        (
            Goal("mqkit publish_soon", RATE, least=2.5, against="kafka-python, defaults"),
            Goal("mqkit publish_soon", RATE, least=0.85, against="kafka-python, tuned"),
        ),
        "Documents of 1 KiB over four partitions of a cluster of one node, idempotent, confirmed by all replicas. Tuned are "
        "batches of 256 KiB and a linger of 5 ms. faststream stands on confluent-kafka, a C library, and waits for 100 at once.",
    ),
    Contest(
        "kafka-consume",
        {
            "kafka-python, commit per poll": kafka_raw.consume,
            "kafka-python, commit not waited for": kafka_raw.consume_unwaited,
            "mqkit": kafka.consume,
            "aiokafka": peers_kafka.aiokafka_consume,
            "faststream": peers_kafka.faststream_consume,
            "confluent-kafka": peers_kafka.confluent_consume,
        },
        (Goal("mqkit", RATE, least=0.85, against="kafka-python, commit per poll"),),
        "As before, from the first message on. All but faststream commit up to 500 at once; it commits each message by "
        "itself, as mqkit settles it.",
    ),
    Contest(
        "sqs-publish",
        {
            "boto3, one by one": sqs_raw.send,
            "boto3, by ten": sqs_raw.send_by_ten,
            "mqkit publish_soon": sqs.publish,
            "kombu": peers_sqs.kombu_publish,
        },
        (
            Goal("mqkit publish_soon", CPU, most=0.125, against="boto3, one by one"),
            Goal("mqkit publish_soon", CPU, most=1.11, against="boto3, by ten"),
            Goal("mqkit publish_soon", CALLS, most=0.11),
        ),
        "Documents of 1 KiB to a standard queue of MiniStack, whose one core the rates belong to: compare CPU and calls.",
    ),
    Contest(
        "sqs-consume",
        {
            "boto3, one by one": sqs_raw.consume,
            "boto3, by ten": sqs_raw.consume_by_ten,
            "mqkit": sqs.consume,
            "kombu": peers_sqs.kombu_consume,
        },
        (
            Goal("mqkit", CPU, most=0.125, against="boto3, one by one"),
            Goal("mqkit", CPU, most=1.11, against="boto3, by ten"),
            Goal("mqkit", CALLS, most=0.3),
        ),
        "As before; calls are receives, also those that bring nothing, and deletes. mqkit's include its start and its end.",
    ),
    Contest(
        "latency",
        {"memory": memory.latency, "sqlite, two processes": sqlite.latency_between_processes},
        (
            Goal("memory", MEDIAN, most=2.0),
            Goal("sqlite, two processes", MEDIAN, most=5.0),
        ),
        "One message at a time, nothing else to do. Another job on the machine shows here first.",
    ),
    Contest(
        "backlog",
        {"10,000 waiting": sqlite.waiting_10_000, "1,000,000 waiting": sqlite.waiting_1_000_000},
        (
            Goal("1,000,000 waiting", f"publish {RATE}", least=0.7, against="10,000 waiting"),
            Goal("1,000,000 waiting", f"consume {RATE}", least=0.7, against="10,000 waiting"),
        ),
        "Small documents on SQLite.",
    ),
    Contest(
        "growth",
        {"slow consumer": footprint.slow_consumer},
        (Goal("slow consumer", MEGABYTES, most=50.0),),
        "Resident memory of a consumer from before its worker starts to its highest point in 8 s.",
    ),
    Contest(
        "import",
        {"import mqkit": footprint.import_mqkit, "what it stands on": footprint.import_msgspec},
        (Goal("import mqkit", MILLISECONDS, most=100.0),),
        "Fails if a driver, typer or rich comes along. What it stands on: msgspec, concurrent.futures, asyncio.",
    ),
)
