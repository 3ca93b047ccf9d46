"""What is wrong with a subscription is said when it is made, or at the latest at its first use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mqkit import Broadcast, Bus, Queue, Retry, Topic
from mqkit.errors import BlockingCall, ConfigError

emails = Queue("emails", str)
orders = Topic("orders", str)
ticks = Broadcast("ticks", int)


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("emails", {}, "texts are not destinations"),
        (orders, {}, "needs group="),
        (emails, {"group": "g"}, "is for topics"),
        (orders, {"group": "a/b"}, "'/'"),
        (emails, {"prefetch": 0}, "prefetch=0"),
        (emails, {"prefetch": True}, "prefetch=True"),
        (emails, {"order": "banana"}, "order='banana'"),
        (emails, {"order": "key"}, "declares key="),
        (emails, {"start": "earliest"}, "is for topics"),
        (orders, {"group": "g", "start": "middle"}, "start='middle'"),
        (emails, {"retry": 5}, "retry=5 must be a Retry"),
        (emails, {"match": "a.*"}, "match= has no meaning for a queue"),
        (emails, {"buffer": 3}, "buffer= has no meaning for a queue"),
        (orders, {"group": "g", "overflow": "drop_newest"}, "overflow= has no meaning for a topic"),
        (ticks, {"group": "g"}, "is for topics"),
        (ticks, {"prefetch": 3}, "prefetch= has no meaning for a broadcast"),
        (ticks, {"start": "earliest"}, "is for topics"),
        (ticks, {"order": "key"}, "order= has no meaning for a broadcast"),
        (ticks, {"retry": Retry()}, "retry= has no meaning for a broadcast"),
        (ticks, {"buffer": 0}, "buffer=0"),
        (ticks, {"overflow": "drop"}, "overflow='drop'"),
    ],
)
def test_a_subscription_that_cannot_work_is_refused_at_once(source: Any, options: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=text):
        Bus("memory://").subscription(source, **options)


def test_the_earliest_message_of_a_topic_that_keeps_none_is_refused_at_the_first_use():
    with Bus("memory://") as bus, pytest.raises(ConfigError, match="keeps nothing"):
        bus.subscription(orders, group="g", start="earliest").receive(timeout=0.0)


def test_blocking_on_a_running_loop_names_the_twin_to_enter():
    bus = Bus("memory://")
    bus.on(emails)(lambda text: None)

    async def main() -> None:
        with pytest.raises(BlockingCall, match=r"async with bus.aio.subscription\(\.\.\.\)"), bus.subscription(emails):
            pass
        with pytest.raises(BlockingCall, match=r"async with bus.aio.worker\(\)"), bus.worker():
            pass
        with pytest.raises(BlockingCall, match="mqkit run"):
            bus.run()

    asyncio.run(main())
