"""What is wrong with a destination is said where it is declared."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from mqkit import Bus, Queue, Topic
from mqkit.errors import ConfigError
from mqkit.native import MemoryTopic, SqliteTopic, SqliteTransaction


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (lambda: Topic("t", int, groups="abc"), "groups='abc'"),
        (lambda: Topic("t", int, groups=["a/b"]), "'/'"),
        (lambda: Queue("q", int, codec="json"), "codec='json'.*mqkit.codecs"),
        (lambda: Queue("q", int, key="customer"), "key='customer' must be a function"),
        (lambda: Queue("q", int, declare="no"), "declare='no'"),
        (lambda: Queue("q", int, partitions=True), "partitions=True"),
        (lambda: Queue("q", int, priorities=-1), "priorities=-1"),
        (lambda: Queue("q", int, native="retain"), "not an options object"),
        (lambda: Queue("q", int, native=MemoryTopic(retain=5.0)), "is for a topic, not for a queue"),
        (lambda: Queue("q", int, native=SqliteTransaction(None)), "not an options object"),
        (lambda: MemoryTopic(retain="60"), "retain='60'"),
        (lambda: SqliteTopic(retain=-5), "retain=-5"),
        (lambda: SqliteTopic(retain=float("nan")), "retain=nan"),
    ],
)
def test_a_declaration_that_cannot_work_is_refused_at_once(declare: Any, text: str):
    with pytest.raises(ConfigError, match=text):
        declare()


def test_of_destinations_made_for_each_message_one_is_kept():
    made: list[weakref.ref[Queue[int]]] = []
    with Bus("memory://") as bus:
        for number in range(50):
            queue = Queue("numbers", int)
            made.append(weakref.ref(queue))
            bus.publish(queue, number)
        del queue
        gc.collect()
        assert sum(one() is not None for one in made) == 1
