"""The driver itself: what its documentation shows for streams, batched as far as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import redis

from benchmarks.sample import LARGE, Sample, Stopwatch
from mqkit.testing.brokers import RedisProcess

MESSAGES = 60_000
TOGETHER = 100
STREAM, GROUP = "documents", "workers"

encode, decode = msgspec.json.Encoder().encode, msgspec.json.Decoder(dict[str, str]).decode


def publish() -> Sample:
    """`pipeline(100)` of XADD."""
    with client() as (_, db):
        watch = Stopwatch()
        _fill(db)
        return watch.sample(MESSAGES)


def consume() -> Sample:
    """XREADGROUP of 100, a handler for each, then XACK of them; without XDEL, so the stream keeps growing."""
    with client() as (_, db):
        db.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        _fill(db)
        watch = Stopwatch()
        handled = 0
        while handled < MESSAGES:
            [(_, entries)] = db.xreadgroup(GROUP, "me", {STREAM: ">"}, count=TOGETHER, block=5000)
            for _, fields in entries:
                _handle(decode(fields[b"body"]))
                handled += 1
            db.xack(STREAM, GROUP, *[id for id, _ in entries])
        return watch.sample(handled)


@contextmanager
def client() -> Iterator[tuple[RedisProcess, redis.Redis]]:
    with RedisProcess() as server, redis.Redis(port=server.port) as db:
        yield server, db


def _fill(db: redis.Redis) -> None:
    pipeline = db.pipeline(transaction=False)
    for number in range(MESSAGES):
        pipeline.xadd(STREAM, {"id": f"{number:032x}", "body": encode(LARGE)})
        if number % TOGETHER == TOGETHER - 1:
            pipeline.execute()


def _handle(payload: dict[str, str]) -> None: ...
