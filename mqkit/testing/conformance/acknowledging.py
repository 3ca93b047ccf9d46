"""C: settling, handing out again, leases, shutdown."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from typing import Any, cast

import pytest

from mqkit import Delivery, Queue, Reject, Retry, RetryLater, fixed
from mqkit.backends.base import Done, Settlement
from mqkit.errors import LeaseLost
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import drain
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import lease_to_keep, short_lease


class TestAcknowledging:
    """C. Acknowledgement, redelivery, lease."""

    @case("C.01")
    def test_what_was_acknowledged_never_returns(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        first.publish_many(numbers, range(20))

        with first.subscription(numbers) as messages:
            acknowledged = harness.take(messages, 10)
            for delivery in acknowledged:
                delivery.ack()
        first.close()
        with second.subscription(numbers) as messages:
            rest = harness.take(messages, 10)
            for delivery in rest:
                delivery.ack()
            harness.wait_empty(numbers)

        assert sorted(delivery.payload for delivery in (*acknowledged, *rest)) == list(range(20))

    @case("C.02", needs=("delay",))
    def test_a_message_to_be_retried_comes_again_at_once_or_after_the_time_that_was_asked_for(
        self, harness: Harness
    ) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        asked: dict[str, float] = {}
        came: dict[str, float] = {}

        with bus.subscription(words) as messages:
            bus.publish(words, "at once")
            bus.publish(words, "later")
            for delivery in harness.take(messages, 2):
                asked[delivery.payload] = time.monotonic()
                delivery.retry(after=2.0 if delivery.payload == "later" else 0.0)
            for _ in range(2):
                [delivery] = harness.take(messages, 1)
                came[delivery.payload] = time.monotonic() - asked[delivery.payload]
                assert delivery.attempt == 2
                delivery.ack()

        assert list(came) == ["at once", "later"]
        assert came["later"] >= 2.0

    @case("C.03")
    def test_three_hundred_failures_over_fifty_messages_end_with_each_of_them_done(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        attempts: defaultdict[int, list[int]] = defaultdict(list)

        @bus.on(numbers, retry=Retry(attempts=7, backoff=fixed(0.0)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            attempts[number].append(delivery.attempt)
            if delivery.attempt < 7:
                raise ConnectionError("again")

        bus.publish_many(numbers, range(50))
        drain(harness, bus)

        assert attempts == {number: [1, 2, 3, 4, 5, 6, 7] for number in range(50)}
        assert bus.dead_letters(numbers).list() == []

    @case("C.04")
    def test_the_first_settlement_of_a_delivery_counts_and_later_ones_do_no_harm(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        for word in ("acknowledged", "retried", "rejected"):
            bus.publish(words, word)

        with bus.subscription(words) as messages:
            taken = {delivery.payload: delivery for delivery in harness.take(messages, 3)}
            for first in ("ack", "retry", "reject"):
                delivery = taken[{"ack": "acknowledged", "retry": "retried", "reject": "rejected"}[first]]
                settle(delivery, first)
                for later in ("ack", "retry", "reject", "fail", first):
                    settle(delivery, later)
            [again] = harness.take(messages, 1)
            again.ack()
            harness.wait_empty(words)

        assert (again.payload, again.attempt) == ("retried", 2)
        assert [dead.reason for dead in bus.dead_letters(words).list()] == ["settled so"]

    @case("C.05")
    def test_a_verdict_on_a_delivery_given_back_has_no_effect_on_its_next_holder(self, harness: Harness) -> None:
        words, first, second = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        first.publish(words, "one")
        first.publish(words, "two")

        with first.subscription(words) as messages:
            given_back = harness.take(messages, 2)
        with second.subscription(words) as messages:
            held = harness.take(messages, 2)
            for delivery in given_back:
                delivery.ack()
            with first.subscription(words) as others:
                nothing = others.receive(timeout=0.2)
            harness.wait(lambda: harness.depth(words).inflight == 2)
            for delivery in held:
                delivery.reject("by its holder")
            harness.wait_empty(words)

        assert nothing == []
        assert [dead.reason for dead in second.dead_letters(words).list()] == ["by its holder"] * 2

    @case("C.06", needs=("order_by_key",))
    def test_the_next_message_of_a_key_comes_when_the_one_before_is_settled(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int, key=lambda _: "one"), harness.bus()
        bus.publish_many(numbers, range(3))

        with bus.subscription(numbers, prefetch=10) as messages:
            seen: list[int] = []
            early: list[object] = []
            for _ in range(3):
                [delivery] = harness.take(messages, 1)
                early += messages.receive(timeout=0.1)
                seen.append(delivery.payload)
                delivery.ack()

        assert early == []
        assert seen == [0, 1, 2]

    @case("C.07")
    def test_what_is_unsettled_when_a_consumer_closes_goes_to_the_next_one(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        first.publish_many(numbers, range(5))

        with first.subscription(numbers) as messages:
            harness.take(messages, 5)
        with second.subscription(numbers) as messages:
            again = harness.take(messages, 5)

        assert sorted(delivery.payload for delivery in again) == list(range(5))
        assert {delivery.attempt for delivery in again} == {1}

    @case("C.08", needs=("survives_process", "processes"))
    def test_a_message_whose_consumer_is_killed_is_handed_out_again(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[tuple[int, int, int | None]] = []

        @bus.on(numbers)
        def handle(number: int, delivery: Delivery[int]) -> None:
            seen.append((number, delivery.attempt, delivery.deliveries))

        process = harness.consumer("hold", numbers.name, "1", url=short_lease(harness))
        bus.publish(numbers, 7)
        process.wait_line("7")
        process.kill()
        with bus.worker():
            harness.wait(lambda: seen, within=20.0)
            harness.wait_empty(numbers)

        assert seen == [(7, 1, 2 if harness.capabilities.counts_deliveries else None)]

    @case("C.09", needs=("survives_process", "processes"))
    def test_everything_a_killed_consumer_held_is_handed_out_again(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []
        bus.on(numbers)(seen.append)

        bus.publish_many(numbers, range(40))
        process = harness.consumer("hold", numbers.name, "5", url=short_lease(harness))
        begun = {int(line) for line in process.wait_line(5)}
        process.kill()
        with bus.worker():
            harness.wait(lambda: len(seen) >= 40, within=20.0)
            harness.wait_empty(numbers)

        assert len(begun) == 5
        assert Counter(seen) == Counter(range(40))

    @case("C.10", needs=("lease",))
    def test_a_delivery_held_longer_than_its_lease_stays_where_it_is(self, harness: Harness) -> None:
        words, url = Queue(harness.unique("words"), str), harness.url_with(lease=lease_to_keep(harness))
        first, second = harness.bus(url), harness.bus(url)
        first.publish(words, "held")

        with first.subscription(words) as holder, second.subscription(words) as other:
            [delivery] = harness.take(holder, 1)
            taken = other.receive(timeout=2.2 * lease_to_keep(harness))
            delivery.ack()
            harness.wait_empty(words)

        assert taken == []

    @case("C.11", needs=("lease", "survives_process", "processes"))
    def test_what_a_frozen_consumer_held_is_taken_over_once(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []
        bus.on(numbers)(seen.append)

        process = harness.consumer("finish_late", numbers.name, "5.0", url=short_lease(harness))
        bus.publish(numbers, 7)
        process.wait_line("begin 7")
        process.freeze()
        with bus.worker():
            harness.wait(lambda: seen, within=20.0)
            harness.wait_empty(numbers)
            process.thaw()
            process.wait_line("stale")
            bus.publish(numbers, 8)
            harness.wait_empty(numbers)

        finished = [int(line.split()[1]) for line in process.lines() if line.startswith("begin")]
        assert seen.count(7) == 1
        assert sorted(set(seen + finished)) == [7, 8]
        assert bus.dead_letters(numbers).list() == []

    @case("C.12")
    def test_acknowledging_later_messages_never_loses_an_earlier_one(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        first.publish_many(numbers, range(10))

        with first.subscription(numbers) as messages:
            for delivery in reversed(harness.take(messages, 10)):
                if delivery.payload not in (0, 4):
                    delivery.ack()
            harness.wait(lambda: harness.depth(numbers).inflight == 2)
        with second.subscription(numbers) as messages:
            again = harness.take(messages, 2)
            for delivery in again:
                delivery.ack()
            harness.wait_empty(numbers)

        assert sorted(delivery.payload for delivery in again) == [0, 4]

    @case("C.13")
    def test_attempts_count_failed_tries_and_deliveries_count_hand_outs(self, harness: Harness) -> None:
        # The waits are longer than closing takes, so that nobody fetches it again before the next consumer.
        words, retry = Queue(harness.unique("words"), str), Retry(attempts=9, backoff=fixed(1.0))
        counts: list[tuple[int, int | None]] = []
        harness.bus().publish(words, "one")

        for ending in ("give back", "fail", "give back", "fail", "retry", "give back", "ack"):
            with harness.bus().subscription(words, prefetch=1, retry=retry) as messages:
                [delivery] = harness.take(messages, 1)
                counts.append((delivery.attempt, delivery.deliveries))
                if ending == "retry":
                    delivery.retry(after=1.0)
                elif ending != "give back":
                    settle(delivery, ending)

        attempts = [1, 1, 2, 2, 3, 4, 4]
        hand_outs = [1, 2, 3, 4, 5, 6, 7] if harness.capabilities.counts_deliveries else [None] * 7
        assert counts == list(zip(attempts, hand_outs, strict=True))

    @case("C.14", needs=("delay",))
    def test_a_delayed_retry_counts_an_attempt_and_a_replay_begins_anew(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        attempts: list[int] = []

        @bus.on(words)
        def handle(word: str, delivery: Delivery[str]) -> None:
            attempts.append(delivery.attempt)
            if delivery.attempt == 1:
                raise RetryLater(after=0.1)
            raise Reject("for the test")

        bus.publish(words, "one")
        drain(harness, bus)
        replayed = bus.dead_letters(words).replay()
        drain(harness, bus)

        assert replayed == 1
        assert attempts == [1, 2, 1, 2]
        assert [dead.attempts for dead in bus.dead_letters(words).list()] == [2]

    @case("C.15")
    def test_what_a_failed_attempt_did_to_payload_and_headers_is_gone(self, harness: Harness) -> None:
        orders, bus = Queue(harness.unique("orders"), dict[str, Any]), harness.bus()
        seen: list[tuple[dict[str, Any], dict[str, str]]] = []

        @bus.on(orders, retry=Retry(attempts=3, backoff=fixed(0.01)))
        def handle(order: dict[str, Any], delivery: Delivery[dict[str, Any]]) -> None:
            seen.append((dict(order), dict(delivery.headers)))
            order["touched"] = True
            try:
                cast("dict[str, str]", delivery.headers)["touched"] = "yes"
            except TypeError:
                pass  # read-only is fine too
            raise ConnectionError("again")

        bus.publish(orders, {"number": 1}, headers={"colour": "red"})
        drain(harness, bus)

        assert seen == [({"number": 1}, {"colour": "red"})] * 3
        [dead] = bus.dead_letters(orders).list()
        assert (dead.message.body, dead.message.headers) == (b'{"number":1}', {"colour": "red"})

    @case("C.16")
    def test_stopping_lets_a_running_handler_finish_and_gives_back_what_waited(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        begun, finish = threading.Event(), threading.Event()
        finished: list[int] = []

        @first.on(numbers, concurrency=1)
        def handle(number: int) -> None:
            begun.set()
            finish.wait(20.0)
            finished.append(number)

        first.publish_many(numbers, range(10))
        with first.worker(grace=20.0):
            assert begun.wait(10.0 * harness.scale)
            harness.wait(lambda: harness.depth(numbers).inflight > 1)
            # It can end only while the worker stops: then everything but the running one has been given back.
            threading.Thread(target=set_when, args=(finish, harness, numbers)).start()
        with second.subscription(numbers) as messages:
            rest = harness.take(messages, 9)

        assert len(finished) == 1
        assert sorted(finished + [delivery.payload for delivery in rest]) == list(range(10))
        assert {delivery.attempt for delivery in rest} == {1}

    @case("C.17")
    def test_a_handler_beyond_the_grace_loses_its_message_uncounted_and_its_verdict(self, harness: Harness) -> None:
        words, first, second = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        begun, finish = threading.Event(), threading.Event()

        @first.on(words, retry=Retry(attempts=1))
        def handle(word: str) -> None:
            begun.set()
            finish.wait(30.0)

        first.publish(words, "long")
        with first.worker(grace=0.1):
            assert begun.wait(10.0 * harness.scale)
        with second.subscription(words) as messages:
            [again] = harness.take(messages, 1)
            finish.set()  # now the first one ends, well, and too late
            first.close()
            again.reject("by its holder")
            harness.wait_empty(words)

        assert again.attempt == 1
        assert [dead.reason for dead in second.dead_letters(words).list()] == ["by its holder"]

    @case("C.18")
    def test_a_shutdown_dead_letters_nothing(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        begun: list[int] = []
        seen: list[tuple[int, int]] = []

        @first.on(numbers, concurrency=4, retry=Retry(attempts=1))
        async def wait_for_ever(number: int) -> None:
            begun.append(number)
            await asyncio.sleep(3600.0)

        @second.on(numbers)
        def handle(number: int, delivery: Delivery[int]) -> None:
            seen.append((number, delivery.attempt))

        first.publish_many(numbers, range(20))
        for _ in range(3):
            count = len(begun)
            with first.worker(grace=0.0):
                harness.wait(lambda count=count: len(begun) >= count + 4)  # type: ignore[misc]
        with second.worker():
            harness.wait_empty(numbers)

        assert sorted(seen) == [(number, 1) for number in range(20)]
        assert second.dead_letters(numbers).list() == []

    @case("C.19")
    def test_a_handler_that_is_cancelled_has_not_failed(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        attempts: list[int] = []

        @bus.on(words, retry=Retry(attempts=1))
        async def handle(word: str, delivery: Delivery[str]) -> None:
            attempts.append(delivery.attempt)
            if len(attempts) < 3:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # as a program that ends does with all its tasks
                await asyncio.sleep(0)

        bus.publish(words, "one")
        with bus.worker() as worker:
            harness.wait(lambda: len(attempts) == 3)
            harness.wait_empty(words)
            [consumer] = worker.consumers
            counts = consumer.counts

        assert attempts == [1, 1, 1]
        assert (counts.released, counts.retried, counts.dead, counts.done) == (2, 0, 0, 1)
        assert bus.dead_letters(words).list() == []

    @pytest.mark.slow
    @case("C.20", needs=("lease", "survives_process", "processes"))
    def test_verdicts_that_come_too_late_are_counted_and_lose_no_message(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []
        bus.on(numbers)(seen.append)
        bus.publish_many(numbers, range(30))

        process = harness.consumer("finish_late", numbers.name, "5.0", url=short_lease(harness))
        process.wait_line("begin")
        process.freeze()
        with bus.worker():
            harness.wait(lambda: len(seen) >= 30, within=20.0)
            harness.wait_empty(numbers)
            process.thaw()
            process.wait_line("stale")

        assert Counter(seen) == Counter(range(30))
        assert len([line for line in process.lines() if line.startswith("begin")]) == 1

    @case("C.20")
    def test_an_acknowledgement_that_fails_is_counted_and_its_message_comes_again(self, harness: Harness) -> None:
        numbers, second = Queue(harness.unique("numbers"), int), harness.bus()
        first, faults = harness.faulty_bus()
        handled: list[int] = []
        again: list[tuple[int, int]] = []
        first.on(numbers)(handled.append)

        @second.on(numbers)
        def handle(number: int, delivery: Delivery[int]) -> None:
            again.append((number, delivery.attempt))

        def refuse(settlement: Settlement) -> LeaseLost | None:
            number = int(settlement.delivery.body)
            return LeaseLost(f"{number} is not yours") if isinstance(settlement, Done) and number % 5 == 0 else None

        faults.settle = refuse
        first.publish_many(numbers, range(20))
        with first.worker() as worker:
            [consumer] = worker.consumers
            harness.wait(lambda: consumer.counts.stale == 4)
            harness.wait(lambda: len(handled) == 20)
        with second.worker():
            harness.wait_empty(numbers)

        assert sorted(handled) == list(range(20))
        assert sorted(again) == [(0, 1), (5, 1), (10, 1), (15, 1)]
        assert second.dead_letters(numbers).list() == []


def settle(delivery: Delivery[Any], how: str) -> None:
    if how == "ack":
        delivery.ack()
    elif how == "retry":
        delivery.retry(after=0.0)
    elif how == "fail":
        delivery.fail(ConnectionError("settled so"))
    else:
        delivery.reject("settled so")


def set_when(finish: threading.Event, harness: Harness, numbers: Queue[int]) -> None:
    """Let the handler end when nothing but its message is in hand any more."""
    try:
        harness.wait(lambda: harness.depth(numbers).inflight == 1)
    finally:
        finish.set()
