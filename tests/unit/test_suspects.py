"""Messages that may kill their process: in which place of their key they run, alone, and what a stop does with them."""

from __future__ import annotations

import threading
import time

import pytest
from waiting import until

from mqkit import Batch, Bus, Delivery, Queue, Retry, fixed
from mqkit.backends.base import Received, Turn
from mqkit.backends.memory import MemoryReceiver

words = Queue("words", str)
steps = Queue("steps", str, key=lambda step: None if step.startswith("keyless") else step[0])


@pytest.fixture
def suspects(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Which messages are handed out, until they have failed, as if they had killed ten processes; a test adds them."""
    suspects: set[str] = set()
    receive = MemoryReceiver.receive

    def suspicious(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        turn = receive(self, room, timeout)
        for received in turn.deliveries:
            if received.body.decode().strip('"') in suspects and received.attempt == 1:
                received.lost = 10
        return turn

    monkeypatch.setattr(MemoryReceiver, "receive", suspicious)
    return suspects


class Log:
    """What ran, in which order, and what ran beside what."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.company: dict[str, set[str]] = {}
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def run(self, step: str) -> None:
        with self._lock:
            self.handled.append(step)
            self._running.add(step)
            for one in self._running:
                self.company.setdefault(one, set()).update(self._running - {one})
        time.sleep(0.01)  # so that what may run side by side does
        with self._lock:
            self._running.remove(step)

    def of(self, key: str) -> list[str]:
        return [step for step in self.handled if step[0] == key]


def test_a_stop_gives_a_suspect_back_instead_of_running_it_alone(suspects: set[str]):
    bus, handled, may_end = Bus("memory://"), [], threading.Event()
    suspects.add("suspect")

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


def test_a_suspect_waits_while_one_before_it_in_its_key_is_retried(suspects: set[str]):
    bus, log = Bus("memory://"), Log()
    suspects.add("a2")

    @bus.on(steps, concurrency=4, retry=Retry(attempts=3, backoff=fixed(0.1)))
    def handle(step: str, delivery: Delivery[str]) -> None:
        log.run(step)
        if step == "a1" and delivery.attempt < 3:
            raise ConnectionError("not yet")

    bus.publish_many(steps, ["a1", "a2", "a3"])
    with bus.worker():
        until(lambda: "a3" in log.handled)

    assert log.handled == ["a1", "a1", "a1", "a2", "a3"]


def test_others_go_on_while_a_suspect_waits_for_its_turn_and_rest_while_it_runs(suspects: set[str]):
    bus, log, may_end = Bus("memory://"), Log(), threading.Event()
    suspects.add("a2")

    @bus.on(steps, concurrency=4)
    def handle(step: str) -> None:
        if step == "a1":
            may_end.wait(20.0)
        log.run(step)

    bus.publish_many(steps, ["a1", "a2", "a3", *(f"b{number}" for number in range(5))])
    with bus.worker():
        until(lambda: len(log.of("b")) == 5)
        bus.publish_many(steps, [f"c{number}" for number in range(20)])
        may_end.set()
        until(lambda: len(log.handled) == 28)

    assert log.of("a") == ["a1", "a2", "a3"]
    assert log.of("c") == [f"c{number}" for number in range(20)]
    assert log.company["a2"] == set()


def test_of_many_suspects_each_runs_alone_and_in_the_order_of_its_key(suspects: set[str]):
    bus, log, failed = Bus("memory://"), Log(), set[str]()
    published = ["keyless1", "a1", "a2", "b1", "a3", "keyless2", "b2", "a4", "c1", "b3"]
    suspects.update({"keyless1", "a2", "b1", "a3", "keyless2", "b3"})

    @bus.on(steps, concurrency=4, retry=Retry(backoff=fixed(0.05)))
    def handle(step: str) -> None:
        log.run(step)
        if step in {"a1", "b1", "a3"} - failed:
            failed.add(step)
            raise ConnectionError("not yet")

    bus.publish_many(steps, published)
    with bus.worker():
        until(lambda: len(log.handled) == len(published) + 3)

    assert log.of("a") == ["a1", "a1", "a2", "a3", "a3", "a4"]
    assert log.of("b") == ["b1", "b1", "b2", "b3"]
    assert log.of("c") == ["c1"]
    for suspect in suspects - failed:  # one that has failed is none any more
        assert log.company[suspect] == set()


def test_what_came_with_a_suspect_keeps_its_order_when_that_is_revoked(
    suspects: set[str], monkeypatch: pytest.MonkeyPatch
):
    bus, log, may_end, revoked = Bus("memory://"), Log(), threading.Event(), list[str]()
    suspects.update({"a1", "b2"})
    receive, handed = MemoryReceiver.receive, dict[str, Received]()

    def revoking(self: MemoryReceiver, room: int, timeout: float) -> Turn:
        turn = receive(self, room, timeout)
        handed.update((received.body.decode().strip('"'), received) for received in turn.deliveries)
        if "a1" in handed and not turn.deliveries and not revoked:
            revoked.append("a1")
            turn.revoked = [handed["a1"]]
        return turn

    monkeypatch.setattr(MemoryReceiver, "receive", revoking)

    @bus.on(steps, concurrency=4)
    def handle(step: str) -> None:
        if step == "c1":
            may_end.wait(20.0)
        log.run(step)

    bus.publish(steps, "c1")
    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: consumer.in_hand == 1)
        bus.publish_many(steps, ["a1", "b1", "b2"])
        until(lambda: revoked)
        may_end.set()
        until(lambda: len(log.of("b")) == 2)

    assert log.of("b") == ["b1", "b2"]


def test_a_suspect_is_not_in_the_batch_of_those_before_it(suspects: set[str]):
    bus, batches = Bus("memory://"), list[list[str]]()
    suspects.add("a3")

    @bus.on(steps, concurrency=4, batch=Batch(size=10, age=0.1))
    def handle(batch: list[Delivery[str]]) -> None:
        batches.append([delivery.payload for delivery in batch])

    bus.publish_many(steps, ["a1", "a2", "a3", "a4", "b1"])
    with bus.worker():
        until(lambda: sum(map(len, batches)) == 5)

    assert batches == [["a1", "a2", "b1"], ["a3"], ["a4"]]


def test_a_stop_gives_a_suspect_that_waits_for_its_turn_back_in_its_place(suspects: set[str]):
    bus, handled, may_end = Bus("memory://"), list[str](), threading.Event()
    suspects.add("a2")

    @bus.on(steps, concurrency=4)
    def handle(step: str) -> None:
        handled.append(step)
        may_end.wait(20.0)

    bus.publish_many(steps, ["a1", "a2", "a3"])
    with bus.worker() as worker:
        [consumer] = worker.consumers
        until(lambda: handled and consumer.in_hand == 3)
        consumer.stop(20.0)
        until(lambda: consumer.in_hand == 1)
        may_end.set()

    assert handled == ["a1"]
    with bus, bus.subscription(steps) as messages:
        for step in ("a2", "a3"):
            [delivery] = messages.receive(max=1, timeout=10.0)
            assert delivery.payload == step
            delivery.ack()
