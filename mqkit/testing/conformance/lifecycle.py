"""A: opening, closing, stopping and starting again."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest

from mqkit import Bus, Message, Queue, Topic
from mqkit.errors import Closed, MqkitError, Unavailable
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.groups import start
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import lease_of, lease_to_keep


class TestLifecycle:
    """A. Lifecycle."""

    @case("A.01")
    def test_a_bus_that_is_open_is_live_and_ready(self, harness: Harness) -> None:
        bus = harness.bus()

        bus.open()

        health = bus.health()
        assert (health.live, health.ready, list(health.reasons)) == (True, True, [])

    @case("A.02")
    def test_a_bus_that_is_not_open_or_closed_says_so_and_is_not_ready(self, harness: Harness) -> None:
        bus = harness.bus()
        before = bus.health()
        bus.open()

        bus.close()

        after = bus.health()
        assert (before.live, before.ready) == (True, False)
        assert (after.live, after.ready) == (True, False)
        assert before.reasons
        assert after.reasons

    @case("A.02", needs=("outage",))
    def test_opening_without_a_system_is_refused_in_the_time_given_and_the_bus_says_why(self, harness: Harness) -> None:
        bus = harness.bus()
        harness.bus().declare(Queue(harness.unique("words"), str))  # what the system keeps is there

        with harness.outage():
            began = time.monotonic()
            with pytest.raises(Unavailable) as found:
                bus.open(timeout=0.5)
            took = time.monotonic() - began
            health = bus.health()
        bus.open(timeout=30.0 * harness.scale)

        assert took < 0.5 + 1.0 * harness.scale
        assert found.value.retryable
        assert (health.live, health.ready) == (True, False)
        assert health.reasons
        assert bus.health().ready

    @pytest.mark.slow
    @case("A.03", needs=("outage",))
    def test_a_start_without_a_system_fails_in_bounded_time_and_one_that_waits_succeeds_when_it_is_back(
        self, harness: Harness
    ) -> None:
        words, waits, consumes = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        seen: list[str] = []
        consumes.on(words)(seen.append)
        with harness.bus() as sender:
            sender.publish(words, "kept")
        ends: list[object] = []

        def wait_for_it() -> None:
            ends.append(error_of(lambda: waits.open(timeout=60.0 * harness.scale)))

        waiting = threading.Thread(target=wait_for_it)
        with harness.outage():
            waiting.start()
            began = time.monotonic()
            with pytest.raises(Unavailable):
                start(consumes)
            took = time.monotonic() - began
            meanwhile = list(ends)
        waiting.join(60.0 * harness.scale)
        with consumes.worker():
            harness.wait(lambda: seen, within=30.0)

        assert took < 25.0 * harness.scale
        assert (meanwhile, ends) == ([], [None])
        assert seen == ["kept"]

    @case("A.04")
    def test_closing_is_harmless_when_repeated_from_any_thread_and_in_a_finalizer(self, harness: Harness) -> None:
        bus, finalized = harness.bus(), harness.bus()
        bus.publish(Queue(harness.unique("words"), str), "one")
        failures: list[BaseException] = []
        threads = [threading.Thread(target=noting(failures, bus.close)) for _ in range(8)]

        for thread in threads:
            thread.start()
        bus.close()
        for thread in threads:
            thread.join(10.0)
        finalized.open()
        ClosesWhenCollected(finalized, failures)
        gc.collect()

        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        with pytest.raises(Closed):
            finalized.publish(Queue(harness.unique("words"), str), "late")

    @case("A.05")
    def test_closing_ends_a_receive_that_waits(self, harness: Harness) -> None:
        bus = harness.bus()
        messages = bus.subscription(Queue(harness.unique("words"), str))
        ends: list[object] = []
        waiting = threading.Event()

        def receive() -> None:
            with messages:
                waiting.set()
                try:
                    ends.append(messages.receive(timeout=60.0))
                except Closed as closed:
                    ends.append(closed)

        thread = threading.Thread(target=receive)
        thread.start()
        assert waiting.wait(10.0 * harness.scale)
        bus.close()
        thread.join(10.0 * harness.scale)

        assert not thread.is_alive()
        assert len(ends) == 1
        assert ends[0] == [] or isinstance(ends[0], Closed)

    @case("A.06")
    def test_what_was_fetched_and_not_read_goes_to_another_consumer(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        first.publish_many(numbers, range(10))

        with first.subscription(numbers, prefetch=10) as messages:
            [read] = harness.take(messages, 1)
            read.ack()
            harness.wait(lambda: harness.depth(numbers).inflight == 9)
        with second.subscription(numbers) as messages:
            rest = harness.take(messages, 9)

        assert sorted([read.payload, *(delivery.payload for delivery in rest)]) == list(range(10))
        assert {delivery.attempt for delivery in rest} == {1}

    @case("A.07")
    def test_closing_sends_what_was_accepted(self, harness: Harness) -> None:
        numbers, sender, reader = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        futures = [sender.publish_soon(numbers, number) for number in range(500)]

        sender.close()

        assert all(future.done() and future.exception() is None for future in futures)
        with reader.subscription(numbers, prefetch=500) as messages:
            assert sorted(delivery.payload for delivery in harness.take(messages, 500)) == list(range(500))

    @case("A.08")
    def test_every_verb_of_a_closed_bus_raises_closed_until_it_is_opened_again(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        bus.on(words)(print)
        held = bus.subscription(words)
        bus.publish(words, "before")
        verbs: dict[str, Callable[[], object]] = {
            "publish": lambda: bus.publish(words, "no"),
            "publish_soon": lambda: bus.publish_soon(words, "no").result(10.0),
            "publish_many": lambda: bus.publish_many(words, ["no"]),
            "forward": lambda: bus.forward(words, Message(id=harness.unique("id"), body=b'"no"')),
            "flush": bus.flush,
            "aio.publish": lambda: asyncio.run(bus.aio.publish(words, "no")),
            "declare": lambda: bus.declare(words),
            "dead_letters.list": lambda: bus.dead_letters(words).list(),
            "receive": lambda: held.receive(timeout=0.0),
            "subscription": lambda: bus.subscription(words).receive(timeout=0.0),
            "worker": lambda: bus.worker().__enter__(),
        }

        held.receive(timeout=0.0)
        bus.close()
        raised = {name: error_of(verb) for name, verb in verbs.items()}
        bus.open()
        bus.publish(words, "after")

        assert raised == dict.fromkeys(verbs, Closed)
        with bus.subscription(words) as messages:
            assert sorted(delivery.payload for delivery in harness.take(messages, 2)) == ["after", "before"]

    @case("A.09")
    def test_subscriptions_that_come_and_go_lose_nothing(self, harness: Harness) -> None:
        numbers, bus, chance = Queue(harness.unique("numbers"), int), harness.bus(), random.Random(9)
        bus.publish_many(numbers, range(200))
        acknowledged: list[int] = []

        for _ in range(10):
            with bus.subscription(numbers, prefetch=chance.randint(1, 50)) as messages:
                for delivery in messages.receive(max=chance.randint(0, 20) or 1, timeout=chance.random() / 20):
                    if chance.random() < 0.8:
                        delivery.ack()
                        acknowledged.append(delivery.payload)
        with bus.subscription(numbers, prefetch=200) as messages:
            for delivery in harness.take(messages, 200 - len(acknowledged)):
                delivery.ack()
                acknowledged.append(delivery.payload)
            harness.wait_empty(numbers)

        assert Counter(acknowledged) == Counter(range(200))

    @case("A.10")
    def test_a_consumer_that_stopped_goes_on_where_it_was(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []
        bus.on(numbers, concurrency=1)(seen.append)

        for first in range(0, 90, 30):
            with bus.worker():
                bus.publish_many(numbers, range(first, first + 30))
                harness.wait(lambda first=first: len(seen) > first)  # type: ignore[misc]
        with bus.worker():
            harness.wait_empty(numbers)

        assert Counter(seen) == Counter(range(90))

    @case("A.11", needs=("shares",))
    def test_a_full_consumer_pauses_without_losing_what_it_holds_and_goes_on_when_it_has_room(
        self, harness: Harness
    ) -> None:
        numbers, lease = Queue(harness.unique("numbers"), int), lease_to_keep(harness)
        url = lease_of(harness, lease)
        paused, other = harness.bus(url), harness.bus(url)
        paused.publish_many(numbers, range(6))

        with paused.subscription(numbers, prefetch=2) as messages:
            held = harness.take(messages, 2)
            with other.subscription(numbers, prefetch=6) as others:
                rest = harness.take(others, 4)
                for delivery in rest:
                    delivery.ack()
                # For longer than two leases nobody gets what the paused one holds, and it gets nothing itself.
                other.publish(numbers, 6)
                [late] = harness.take(others, 1)
                stolen = others.receive(max=6, timeout=2.2 * lease)
                late.retry(after=0.0)
                again = harness.take(others, 1)
                while_paused = messages.receive(max=6, timeout=0.0)
            harness.wait(lambda: ((depth := harness.depth(numbers)).ready, depth.inflight) == (1, 2))
            for delivery in held:
                delivery.ack()
            resumed = harness.take(messages, 1)
            resumed[0].ack()
            harness.wait_empty(numbers)

        assert (stolen, while_paused) == ([], [])
        assert Counter(delivery.payload for delivery in held + rest + resumed) == Counter(range(7))
        assert [delivery.payload for delivery in again + resumed] == [6, 6]

    @case("A.12")
    def test_closing_one_of_two_subscriptions_leaves_the_other_alone(self, harness: Harness) -> None:
        orders, bus = Topic(harness.unique("orders"), int, groups=["kept", "closed"]), harness.bus()
        kept: list[int] = []

        with bus.subscription(orders, group="kept") as stays:
            for turn in range(3):
                with bus.subscription(orders, group="closed") as goes:
                    bus.publish(orders, turn)
                    [delivery] = harness.take(goes, 1)
                    delivery.ack()
                bus.publish(orders, turn + 10)
                for delivery in harness.take(stays, 2):
                    delivery.ack()
                    kept.append(delivery.payload)

        assert sorted(kept) == [0, 1, 2, 10, 11, 12]

    @case("A.13", needs=("transaction",))
    def test_a_client_object_of_the_users_own_is_left_open(self, harness: Harness) -> None:
        words, bus, reader = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        bus.open()
        bus.declare(words)

        with harness.transaction() as native:
            bus.publish(words, "one", native=native)
            bus.close()
            # The end of the block commits, with the client object that the bus was given.
        with reader.subscription(words) as messages:
            [delivery] = harness.take(messages, 1)

        assert delivery.payload == "one"

    @pytest.mark.slow
    @case("A.14")
    def test_fifty_rounds_of_opening_and_closing_leave_no_thread_and_no_file_open(self, harness: Harness) -> None:
        words = Queue(harness.unique("words"), str)

        def use_once() -> None:
            bus = harness.bus()
            bus.on(words)(print_nothing)
            bus.publish(words, "one")
            with bus.worker():
                harness.wait_empty(words)
            bus.close()

        others = set(ours())
        use_once()  # what is made once per process is no leak
        harness.wait(lambda: not set(ours()) - others)
        files = open_files()
        for _ in range(50):
            use_once()

        harness.wait(lambda: not set(ours()) - others)
        gc.collect()
        harness.wait(lambda: open_files() <= files)  # others of this process come and go; a leak of each round stays

    @case("A.15")
    def test_an_application_that_only_sends_consumes_nothing_and_makes_no_group(self, harness: Harness) -> None:
        words, orders = Queue(harness.unique("words"), str), Topic(harness.unique("orders"), str)
        bus, seen = harness.bus(), list[str]()
        bus.on(words)(seen.append)
        bus.on(orders, group="billing")(seen.append)

        bus.open()
        bus.publish(words, "one")
        bus.publish(orders, "two")

        groups = [depth.address.group for depth in harness.describe() if depth.address.name == orders.name]
        assert [group for group in groups if group] == []
        assert harness.depth(words).ready == 1
        assert seen == []

    @case("A.16")
    def test_a_consumer_whose_queue_is_deleted_says_so_or_goes_on_with_a_new_one(self, harness: Harness) -> None:
        words, bus, sender = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        seen: list[str] = []
        bus.on(words)(seen.append)

        with bus.worker():
            sender.publish(words, "before")
            harness.wait(lambda: "before" in seen)
            harness.delete(words)
            sender.publish(words, "after")
            harness.wait(lambda: "after" in seen, within=30.0)
            health = bus.health()

        assert seen == ["before", "after"]
        assert health.ready

    @case("A.15")
    def test_what_was_in_hand_when_its_queue_was_deleted_does_not_return_in_the_next_of_its_name(
        self, harness: Harness
    ) -> None:
        words, bus, sender = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        sender.publish(words, "before")

        with bus.subscription(words) as messages:
            [held] = harness.take(messages, 1)
            harness.delete(words)
            sender.publish(words, "after")
        with sender.subscription(words) as messages:
            [delivery] = harness.take(messages, 1)
            delivery.ack()
            harness.wait_empty(words)

        assert (held.payload, delivery.payload) == ("before", "after")

    @case("A.16")
    def test_a_consumer_whose_loop_crashes_is_reported_and_runs_again(self, harness: Harness) -> None:
        words = Queue(harness.unique("words"), str)
        bus, faults = harness.faulty_bus()
        seen: list[str] = []
        bus.on(words)(seen.append)

        with bus.worker():
            bus.publish(words, "before")
            harness.wait(lambda: seen)
            harness.wait_empty(words)  # settled too, or the crash brings it back
            crashes = [RuntimeError("the driver has a defect") for _ in range(4)]
            faults.crash += crashes
            health = harness.wait(lambda: next((h for h in [bus.health()] if words.name in str(h.reasons)), None))
            bus.publish(words, "after")
            harness.wait(lambda: "after" in seen, within=30.0)
            harness.wait(lambda: bus.health().ready)

        assert health is not None
        assert any("the driver has a defect" in reason for reason in health.reasons)
        assert not health.ready
        assert faults.crash == []
        assert seen == ["before", "after"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
    @case("A.17")
    def test_a_forked_child_connects_anew_or_is_refused_and_its_parent_notices_nothing(self, harness: Harness) -> None:
        name, shared = harness.unique("words"), harness.capabilities.processes

        process = harness.consumer("fork_while_open", name, "shared" if shared else "its own")
        code = process.wait()

        child, parent = process.lines()
        read = "parent after,before"
        assert code == 0
        assert (child, parent) in (("child Closed", read), ("child published", f"{read},child" if shared else read))


class ClosesWhenCollected:
    """Closes a bus in its finalizer."""

    def __init__(self, bus: Bus, failures: list[BaseException]) -> None:
        self._close = noting(failures, bus.close)

    def __del__(self) -> None:
        self._close()


def noting(failures: list[BaseException], action: Callable[[], object]) -> Callable[[], None]:
    """The action, with what it raises put on a list."""

    def act() -> None:
        try:
            action()
        except MqkitError as exc:
            failures.append(exc)

    return act


def error_of(action: Callable[[], object]) -> type[BaseException] | None:
    try:
        action()
    except MqkitError as exc:
        return type(exc)
    return None


def print_nothing(word: str) -> None:
    """A handler that needs no looking at."""


def ours() -> list[threading.Thread]:
    """Threads of mqkit that live."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("mqkit")]


def open_files() -> int:
    """Descriptors of this process, where the system shows them."""
    try:
        return len(os.listdir("/proc/self/fd"))
    except FileNotFoundError:
        return 0
