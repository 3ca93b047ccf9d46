"""Messages that run alone because they may kill, and whose process loses its connection and nothing else."""

from __future__ import annotations

from contextlib import closing

import pytest

from mqkit import Queue
from mqkit.backends.base import Received, Receiver
from mqkit.backends.rabbitmq import notes
from mqkit.testing.chaos import FaultProxy
from tests.integration.receivers import is_lost, receiver_of
from tests.rabbit_server import RabbitHarness
from tests.unit.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

words = Queue("words", str)
keyed = Queue("keyed", str, key=lambda word: word.split()[0])
both = pytest.mark.parametrize("queue", [words, keyed], ids=lambda queue: queue.name)


def taken(receiver: Receiver) -> Received:
    found: list[Received] = []

    def came() -> bool:
        found.extend(receiver.receive(1, 0.1).deliveries)
        return bool(found)

    until(came, within=60.0)
    return found[0]


def through(harness: RabbitHarness, proxy: FaultProxy) -> str:
    return proxy.through(harness.url.partition("?")[0])


@both
def test_another_consumer_that_waits_for_it_does_not_take_it_for_a_killer(
    harness: RabbitHarness, monkeypatch: pytest.MonkeyPatch, queue: Queue[str]
) -> None:
    monkeypatch.setattr(notes, "FAREWELL", 5.0)  # for a slow machine; others wait longer than that
    bus = harness.bus()
    bus.publish(queue, "a suspect")
    with (
        FaultProxy(*harness.endpoint()) as proxy,
        closing(receiver_of(harness.bus(through(harness, proxy)), queue)) as one,
    ):
        one.isolate(taken(one))
        with closing(receiver_of(bus, queue)) as other:
            other.receive(1, 0.1)
            proxy.reset()
            for _ in range(10):  # it is there, and its notes say that somebody is running it alone
                assert other.receive(1, 0.1).deliveries == []
            until(lambda: is_lost(one))
            one.close()

            again = taken(other)

    assert (again.body, again.solo) == (b'"a suspect"', 0)


@both
def test_what_could_not_be_said_at_once_is_said_by_the_next_consumer_of_the_process(
    harness: RabbitHarness, queue: Queue[str]
) -> None:
    with FaultProxy(*harness.endpoint()) as proxy:
        bus = harness.bus(through(harness, proxy))
        bus.publish(queue, "a suspect")
        with closing(receiver_of(bus, queue)) as one:
            one.isolate(taken(one))
            proxy.refuse()
            proxy.reset()
            until(lambda: is_lost(one))
        proxy.accept()
        with closing(receiver_of(bus, queue)) as next_one:
            again = taken(next_one)
            next_one.flush(5.0)
        with closing(receiver_of(harness.bus(), queue)) as other:
            elsewhere = taken(other)

    assert [(one.body, one.solo) for one in (again, elsewhere)] == [(b'"a suspect"', 0)] * 2
