"""H: handlers that take lists."""

from __future__ import annotations

import threading
import time
from typing import TypeVar

from mqkit import Batch, Delivery, Queue, Retry, fixed
from mqkit.codecs import RAW
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import bodies, drain
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import by_key
from mqkit.testing.conformance.programs_ef import Step, steps

T = TypeVar("T")


class TestBatches:
    """H. Batch consumers."""

    @case("H.01")
    def test_a_batch_goes_when_it_is_full_or_its_first_message_is_old_enough(self, harness: Harness) -> None:
        numbers, stream = Queue(harness.unique("numbers"), int), Queue(harness.unique("stream"), int)
        bus = harness.bus()
        full: list[list[int]] = []
        aged: list[list[int]] = []

        @bus.on(numbers, batch=Batch(size=10, age=30.0), concurrency=1)
        def by_size(batch: list[Delivery[int]]) -> None:
            full.append(payloads(batch))

        @bus.on(stream, batch=Batch(size=10_000, age=0.2), concurrency=1)
        def by_age(batch: list[Delivery[int]]) -> None:
            aged.append(payloads(batch))

        bus.publish_many(numbers, range(20))
        with bus.worker():
            harness.wait(lambda: len(full) >= 2)
            late = time.monotonic() + 10.0 * harness.scale
            while not aged and time.monotonic() < late:  # a stream without a pause would never end a sliding age
                bus.publish(stream, 1)

        assert [len(batch) for batch in full] == [10, 10]
        assert sorted(full[0] + full[1]) == list(range(20))
        assert aged
        assert 0 < len(aged[0]) < 10_000

    @case("H.02")
    def test_a_single_message_goes_after_the_age_and_no_batch_is_empty(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        batches: list[tuple[float, list[int]]] = []

        @bus.on(numbers, batch=Batch(size=100, age=0.3))
        def handle(batch: list[Delivery[int]]) -> None:
            batches.append((time.monotonic(), payloads(batch)))

        with bus.worker():
            published = time.monotonic()
            bus.publish(numbers, 1)
            harness.wait(lambda: batches)
            bus.publish(numbers, 2)
            harness.wait(lambda: len(batches) >= 2)

        assert [batch for _, batch in batches] == [[1], [2]]
        assert batches[0][0] - published >= 0.3

    @case("H.03")
    def test_members_fail_one_by_one(self, harness: Harness) -> None:
        name, bus = harness.unique("numbers"), harness.bus()
        numbers, raw = Queue(name, int), Queue(name, bytes, codec=RAW)

        @bus.on(numbers, batch=Batch(size=20, age=0.3), retry=Retry(attempts=2, backoff=fixed(0.02)))
        def handle(batch: list[Delivery[int]]) -> None:
            for delivery in batch:
                if delivery.payload == 3 or (delivery.payload == 7 and delivery.attempt == 1):
                    delivery.fail(ValueError(delivery.id))

        ids = [bus.publish(numbers, number) for number in range(10)]
        broken = bus.publish(raw, b"{")

        trace = drain(harness, bus)

        outcomes = {
            id: [one.outcome for one in trace if one.message_id == id] for id in (ids[3], ids[7], ids[9], broken)
        }
        assert outcomes == {ids[3]: ["retry", "dead"], ids[7]: ["retry", "done"], ids[9]: ["done"], broken: ["dead"]}
        assert len(trace) == 13
        assert bodies(bus.dead_letters(numbers).list()) == [b"3", b"{"]

    @case("H.04")
    def test_a_batch_may_be_larger_than_what_the_broker_hands_over_at_once(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        batches: list[list[int]] = []

        @bus.on(numbers, batch=Batch(size=2500, age=30.0), concurrency=1)
        def handle(batch: list[Delivery[int]]) -> None:
            batches.append(payloads(batch))

        bus.publish_many(numbers, range(2500))

        with bus.worker():
            harness.wait(lambda: batches, within=25.0)

        assert [sorted(batch) for batch in batches] == [list(range(2500))]

    @case("H.05")
    def test_a_half_filled_batch_is_given_back_at_shutdown_uncounted(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        early: list[int] = []
        seen: list[tuple[int, int]] = []

        @first.on(numbers, batch=Batch(size=100, age=60.0))
        def fill(batch: list[Delivery[int]]) -> None:
            early.extend(payloads(batch))

        @second.on(numbers, batch=Batch(size=7, age=60.0))
        def handle(batch: list[Delivery[int]]) -> None:
            seen.extend((delivery.payload, delivery.attempt) for delivery in batch)

        first.publish_many(numbers, range(7))
        with first.worker() as worker:
            [consumer] = worker.consumers
            harness.wait(lambda: consumer.in_hand == 7)
        with second.worker():
            harness.wait(lambda: len(seen) >= 7)

        assert early == []
        assert sorted(seen) == [(number, 1) for number in range(7)]

    @case("H.06")
    def test_members_keep_their_own_ids_headers_and_keys(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[tuple[str, int, str | None, dict[str, str]]] = []

        @bus.on(numbers, batch=Batch(size=5, age=1.0))
        def handle(batch: list[Delivery[int]]) -> None:
            seen.extend((one.id, one.payload, one.key, dict(one.headers)) for one in batch)

        sent = [
            (
                bus.publish(numbers, number, key=f"key {number}", headers={"n": str(number)}),
                number,
                f"key {number}",
                {"n": str(number)},
            )
            for number in range(5)
        ]

        drain(harness, bus)

        assert sorted(seen, key=lambda one: one[1]) == sent

    @case("H.07", needs=("order_by_key",))
    def test_batches_keep_the_order_of_each_key(self, harness: Harness) -> None:
        queue, bus, lock = steps(harness.unique("steps")), harness.bus(), threading.Lock()
        seen: list[Step] = []
        running: set[str] = set()
        overlaps: list[set[str]] = []

        @bus.on(queue, batch=Batch(size=10, age=0.05), concurrency=4)
        def handle(batch: list[Delivery[Step]]) -> None:
            keys = {delivery.payload.key for delivery in batch}
            with lock:
                overlaps.append(keys & running)
                running.update(keys)
                seen.extend(payloads(batch))
            with lock:
                running.difference_update(keys)

        bus.publish_many(queue, [Step(f"key {key}", number) for number in range(30) for key in range(7)])

        drain(harness, bus)

        assert by_key(seen) == {f"key {key}": list(range(30)) for key in range(7)}
        assert not any(overlaps)

    @case("H.08")
    def test_a_handler_that_raises_has_failed_every_member(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()

        @bus.on(numbers, batch=Batch(size=5, age=0.5), retry=Retry(attempts=2, backoff=fixed(0.02)))
        def handle(batch: list[Delivery[int]]) -> None:
            raise ValueError("all of you")

        ids = [bus.publish(numbers, number) for number in range(5)]

        trace = drain(harness, bus)

        for id in ids:
            assert [(one.attempt, one.outcome) for one in trace if one.message_id == id] == [(1, "retry"), (2, "dead")]
        assert bodies(bus.dead_letters(numbers).list()) == [b"0", b"1", b"2", b"3", b"4"]

    @case("H.09", needs=("order_by_key",))
    def test_a_failed_member_holds_its_key_back_from_the_next_batch_on(self, harness: Harness) -> None:
        queue, bus = steps(harness.unique("steps")), harness.bus()
        batches: list[list[int]] = []

        @bus.on(queue, batch=Batch(size=3, age=3.0), retry=Retry(attempts=2, backoff=fixed(0.3)))
        def handle(batch: list[Delivery[Step]]) -> None:
            batches.append([delivery.payload.number for delivery in batch])
            for delivery in batch:
                if delivery.payload.number == 1 and delivery.attempt == 1:
                    delivery.fail(ConnectionError("not yet"))

        bus.publish_many(queue, [Step("one", number) for number in range(6)])

        drain(harness, bus)

        assert batches[0] == [0, 1, 2]
        assert [number for batch in batches[1:] for number in batch] == [1, 3, 4, 5]


def payloads(batch: list[Delivery[T]]) -> list[T]:
    return [delivery.payload for delivery in batch]
