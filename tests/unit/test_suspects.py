"""A message that may kill its process, while the worker stops."""

from __future__ import annotations

import threading

import pytest
from waiting import until

from mqkit import Bus, Queue
from mqkit.backends.base import Turn
from mqkit.backends.memory import MemoryReceiver

words = Queue("words", str)


def test_a_stop_gives_a_suspect_back_instead_of_running_it_alone(monkeypatch: pytest.MonkeyPatch):
    bus, handled, may_end, receive = Bus("memory://"), [], threading.Event(), MemoryReceiver.receive

    def suspicious(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        turn = receive(self, room, timeout)
        for received in turn.deliveries:
            received.lost = 10 if received.body == b'"suspect"' else 0
        return turn

    monkeypatch.setattr(MemoryReceiver, "receive", suspicious)

    @bus.on(words, concurrency=1)
    def handle(word: str) -> None:
        handled.append(word)
        may_end.wait(20.0)

    bus.publish_many(words, ["harmless", "suspect"])
    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: handled and consumer.in_hand == 2)
        consumer.stop(20.0)
        until(lambda: consumer.in_hand == 1)
        may_end.set()

    assert handled == ["harmless"]
    with bus, bus.subscription(words) as messages:
        assert [delivery.payload for delivery in messages.receive(timeout=10.0)] == ["suspect"]
