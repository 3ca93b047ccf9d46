"""F: failed attempts, dead letters and their replay."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from mqkit import (
    Ack,
    Bus,
    DeadLetter,
    Delivery,
    Handlers,
    Message,
    Queue,
    Reject,
    Retry,
    RetryLater,
    Topic,
    fixed,
    linear,
)
from mqkit.backends.base import Done, Outgoing, Receiver, Release, Settlement
from mqkit.codecs import RAW
from mqkit.errors import NotFound, PublishFailed, Unavailable
from mqkit.testing import Trace, run_until_idle
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.faults import accept
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import short_lease
from mqkit.testing.conformance.programs_ef import receiver_of, take_one

FOUR_KIB = 4096
JSON_TYPE = "application/json"


@dataclass(frozen=True)
class Placed:
    number: int


@dataclass(frozen=True)
class Cancelled:
    number: int


@dataclass(frozen=True)
class Refunded:
    number: int


class TestFailures:
    """F. Failure handling, dead letters, replay."""

    @case("F.01")
    def test_a_message_that_always_fails_is_tried_as_often_as_declared_and_dies_once(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        attempts: list[int] = []

        @bus.on(numbers, retry=Retry(attempts=4, backoff=fixed(0.05)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            attempts.append(delivery.attempt)
            raise ValueError("no")

        bus.publish(numbers, 7)

        drain(harness, bus)

        assert attempts == [1, 2, 3, 4]
        [dead] = bus.dead_letters(numbers).list()
        assert (dead.attempts, dead.error_type) == (4, "ValueError")

    @case("F.02")
    def test_the_exception_decides_between_retry_dead_letter_and_done(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        policy = Retry(attempts=3, backoff=fixed(0.02), on=(OSError,), never=(ConnectionRefusedError,))
        errors = {
            "listed": OSError("again"),
            "near": ConnectionResetError("a kind of OSError"),
            "never": ConnectionRefusedError("nearer than OSError"),
            "unlisted": KeyError("not named"),
            "later": RetryLater(after=0.02),
            "reject": Reject("of no use"),
            "ack": Ack("nothing to do"),
        }

        @bus.on(words, retry=policy)
        def handle(word: str, delivery: Delivery[str]) -> None:
            if delivery.attempt == 1:
                raise errors[word]

        ids = {bus.publish(words, word): word for word in errors}

        trace = drain(harness, bus)

        outcomes = {word: [one.outcome for one in trace if ids[one.message_id] == word] for word in errors}
        assert outcomes == {
            "listed": ["retry", "done"],
            "near": ["retry", "done"],
            "never": ["dead"],
            "unlisted": ["dead"],
            "later": ["retry", "done"],
            "reject": ["dead"],
            "ack": ["done"],
        }
        assert {ids[dead.id] for dead in bus.dead_letters(words).list()} == {"never", "unlisted", "reject"}

    @case("F.03")
    def test_a_message_that_waits_for_its_retry_holds_up_no_other(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []

        @bus.on(numbers, concurrency=1, retry=Retry(attempts=2, backoff=fixed(5.0)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            seen.append(number)
            if number == 0 and delivery.attempt == 1:
                raise ConnectionError("not yet")

        bus.publish_many(numbers, range(20))

        drain(harness, bus)

        assert sorted(seen[:20]) == list(range(20))
        assert seen[20:] == [0]

    @case("F.04")
    def test_an_attempt_never_begins_before_its_back_off_has_passed(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        begun: list[float] = []
        failed: list[float] = []

        @bus.on(words, retry=Retry(attempts=4, backoff=linear(step=0.15, cap=0.3, jitter=False)))
        def handle(word: str) -> None:
            begun.append(time.monotonic())
            failed.append(time.monotonic())
            raise ConnectionError(word)

        bus.publish(words, "flaky")

        drain(harness, bus)

        waits = [later - earlier for earlier, later in zip(failed, begun[1:], strict=False)]
        assert [wait >= least - 0.002 for wait, least in zip(waits, (0.15, 0.3, 0.3), strict=True)] == [True] * 3, waits

    @case("F.05")
    def test_an_undecodable_message_dies_on_first_sight_and_its_neighbours_notice_nothing(
        self, harness: Harness
    ) -> None:
        name, bus = harness.unique("orders"), harness.bus()
        orders, raw = Queue(name, Placed), Queue(name, bytes, codec=RAW)
        seen: list[int] = []

        @bus.on(orders)
        def handle(order: Placed) -> None:
            seen.append(order.number)

        for number in range(5):
            bus.publish(orders, Placed(number))
        broken = bus.publish(raw, b'{"number": "\xff')
        for number in range(5, 10):
            bus.publish(orders, Placed(number))

        trace = drain(harness, bus)

        [dead] = bus.dead_letters(orders).list()
        assert (dead.id, dead.message.body, dead.attempts) == (broken, b'{"number": "\xff', 1)
        assert dead.reason.startswith("undecodable")
        assert sorted(seen) == list(range(10))
        assert all(one.attempt == 1 for one in trace)

    @case("F.06")
    def test_a_message_of_an_unknown_type_dies_unless_the_group_filters_it_out(self, harness: Harness) -> None:
        name, bus = harness.unique("events"), harness.bus()
        events = Topic(name, Placed | Cancelled, groups=["strict", "lenient"])
        seen: list[tuple[str, Placed | Cancelled]] = []

        @bus.on(events, group="strict")
        def strict(event: Placed | Cancelled) -> None:
            seen.append(("strict", event))

        @bus.on(events, group="lenient", where=lambda message: message.type in ("Placed", "Cancelled"))
        def lenient(event: Placed | Cancelled) -> None:
            seen.append(("lenient", event))

        bus.publish(events, Placed(1))
        newer = bus.publish(Topic(name, Placed | Refunded), Refunded(2))
        bus.publish(events, Cancelled(3))

        trace = drain(harness, bus)

        assert sorted(seen, key=repr) == sorted(
            [(group, event) for group in ("strict", "lenient") for event in (Placed(1), Cancelled(3))], key=repr
        )
        assert [dead.id for dead in bus.dead_letters(events, group="strict").list()] == [newer]
        assert bus.dead_letters(events, group="lenient").list() == []
        assert [one.outcome for one in trace.of(name, "lenient") if one.message_id == newer] == ["skipped"]

    @case("F.07")
    def test_a_dead_letter_is_the_message_as_published_with_what_happened_to_it(self, harness: Harness) -> None:
        orders, bus = Topic(harness.unique("orders"), bytes, codec=RAW, groups=["billing"]), harness.bus()
        body, headers = bytes(range(256)) * 4, {"Trace Id": "a/b.c", "ünï": "çödé ☃", "empty": "", "q": '"\\\t'}

        @bus.on(orders, group="billing", retry=Retry(attempts=2, backoff=fixed(0.02)))
        def handle(body: bytes) -> None:
            raise ValueError("☃" * 100_000)

        before = time.time()
        id = bus.publish(orders, body, headers=headers)

        drain(harness, bus)

        [dead] = bus.dead_letters(orders, group="billing").list()
        assert (dead.id, dead.message.body, dict(dead.message.headers)) == (id, body, headers)
        assert (dead.error_type, dead.attempts, dead.group) == ("ValueError", 2, "billing")
        assert dead.reason.startswith("ValueError after 2 attempts: ☃")
        assert len(dead.reason.encode()) < FOUR_KIB
        assert before - 5 < dead.died_at < time.time() + 5

    @case("F.08")
    def test_a_message_whose_dead_letter_cannot_be_written_stays_until_it_can(self, harness: Harness) -> None:
        numbers = Queue(harness.unique("numbers"), int)
        bus, faults = harness.faulty_bus()
        letters = bus.dead_letters(numbers)
        tries: list[int] = []
        done: list[int] = []

        @bus.on(numbers, retry=Retry(attempts=2, backoff=fixed(0.02)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            if number == 3:
                tries.append(delivery.attempt)
                raise ValueError("no")
            done.append(number)

        faults.publish, faults.settle = refuse_dead_message, refuse_dead_copy
        bus.publish_many(numbers, range(10))
        with bus.worker():
            # Given back, the last attempt begins again as long as its end cannot be noted; else it stays in hand.
            begins_again = harness.capabilities.release or harness.capabilities.atomic
            harness.wait(lambda: len(tries) >= (4 if begins_again else 2))
            harness.wait(lambda: left(harness, numbers) == 1)
            meanwhile = letters.list()
            faults.publish = faults.settle = accept
            [dead] = harness.wait(letters.list)
            harness.wait_empty(numbers)

        assert meanwhile == []
        assert sorted(done) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
        assert tries[:4] == ([1, 2, 2, 2] if begins_again else [1, 2])
        assert (dead.message.body, dead.attempts, dead.error_type) == (b"3", 2, "ValueError")

    @case("F.09")
    def test_dead_letters_moved_to_a_queue_are_consumed_there_and_die_there_once(self, harness: Harness) -> None:
        numbers, hospital = Queue(harness.unique("numbers"), int), Queue(harness.unique("hospital"), int)
        bus = harness.bus()
        seen: list[tuple[int, int, str | None, str]] = []

        @bus.on(numbers, retry=Retry(attempts=1))
        def handle(number: int) -> None:
            raise ValueError("no")

        @bus.on(hospital, retry=Retry(attempts=2, backoff=fixed(0.02)))
        def treat(number: int, delivery: Delivery[int]) -> None:
            seen.append((number, delivery.attempt, delivery.key, delivery.headers["n"]))
            raise ConnectionError("no cure")

        ids = [bus.publish(numbers, n, key=f"key {n}", headers={"n": str(n)}) for n in range(3)]
        first = drain(harness, bus)

        moved = bus.dead_letters(numbers).replay(to=hospital)
        second = drain(harness, bus)

        assert moved == 3
        assert [one.outcome for one in first] == ["dead"] * 3
        assert sorted(seen) == [(n, attempt, f"key {n}", str(n)) for n in range(3) for attempt in (1, 2)]
        # Its own failures neither go round nor back to where it came from.
        assert Counter(one.outcome for one in second) == {"retry": 3, "dead": 3}
        assert second.of(numbers.name) == []
        assert bus.dead_letters(numbers).list() == []
        died = {dead.id: (dead.message.body, dead.reason, dead.attempts) for dead in bus.dead_letters(hospital).list()}
        assert died == {
            id: (str(n).encode(), "ConnectionError after 2 attempts: no cure", 2) for n, id in enumerate(ids)
        }

    @case("F.09")
    def test_dead_letters_moved_to_a_topic_reach_each_of_its_groups(self, harness: Harness) -> None:
        numbers, bus = dead_numbers(harness, 3)
        events = Topic(harness.unique("events"), int, groups=["one", "two"])
        seen: dict[str, list[int]] = {"one": [], "two": []}
        for group, found in seen.items():
            bus.on(events, group=group)(found.append)

        bus.dead_letters(numbers).replay(to=events)
        drain(harness, bus)

        assert {group: sorted(found) for group, found in seen.items()} == {"one": [0, 1, 2], "two": [0, 1, 2]}

    @case("F.10")
    def test_replay_hands_one_some_or_all_out_again_as_they_were_published(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        healthy: list[tuple[int, int, str]] = []
        broken = [True]

        @bus.on(numbers, concurrency=1, retry=Retry(attempts=2, backoff=fixed(0.01)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            if broken:
                raise ValueError("no")
            healthy.append((number, delivery.attempt, delivery.headers["n"]))

        ids = [bus.publish(numbers, number, headers={"n": str(number)}) for number in range(8)]
        drain(harness, bus)
        broken.clear()
        letters = bus.dead_letters(numbers)
        counts = [letters.replay([ids[3]]), letters.replay(where=lambda letter: letter.message.headers["n"] > "5")]
        drain(harness, bus)
        some, rest = list(healthy), len(healthy)
        counts.append(letters.replay())
        drain(harness, bus)

        assert counts == [1, 2, 5]
        assert sorted(some) == [(3, 1, "3"), (6, 1, "6"), (7, 1, "7")]
        assert sorted(healthy[rest:]) == [(n, 1, str(n)) for n in (0, 1, 2, 4, 5)]
        assert letters.list() == []

    @case("F.10")
    def test_two_dead_letters_of_one_id_are_one_message_however_far_apart(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        letters = bus.dead_letters(numbers)
        with bus.subscription(numbers) as messages:
            for number, id in ((0, "twice"), *((number, f"once {number}") for number in range(1, 121)), (0, "twice")):
                bus.publish(numbers, number, id=id)
                [delivery] = harness.take(messages, 1)
                delivery.reject("for the test")
            harness.wait(lambda: len(letters.list(limit=200)) == 122)

        odd = letters.replay(where=lambda letter: int(letter.message.body) % 2 == 1)
        rest = letters.replay()

        assert (odd, rest) == (60, 61)
        assert sorted(delivery.payload for delivery in take_all(bus, numbers)) == list(range(121))
        assert letters.list() == []

    @case("F.11")
    def test_a_replay_that_is_interrupted_loses_nothing(self, harness: Harness) -> None:
        numbers, bus = dead_numbers(harness, 250)
        letters = bus.dead_letters(numbers)
        looked_at: list[str] = []

        def interrupted(letter: DeadLetter[int]) -> bool:
            looked_at.append(letter.id)
            if len(looked_at) == 200:
                raise KeyboardInterrupt
            return True

        with pytest.raises(KeyboardInterrupt):
            letters.replay(where=interrupted)

        left = [letter.id for letter in letters.list(limit=1000)]
        replayed = [delivery.id for delivery in take_all(bus, numbers)]
        assert replayed
        assert len(left) >= 50
        assert len(set(left) | set(replayed)) == 250
        assert len(left) + len(replayed) == 250 or not harness.capabilities.atomic

    @case("F.12")
    def test_a_replay_reaches_only_the_group_that_gave_up(self, harness: Harness) -> None:
        orders, bus = Topic(harness.unique("orders"), int, groups=["billing", "audit"]), harness.bus()
        billing: list[int] = []
        audit: list[int] = []
        bus.on(orders, group="audit")(audit.append)

        @bus.on(orders, group="billing", retry=Retry(attempts=1))
        def bill(number: int) -> None:
            billing.append(number)
            if len(billing) == 1:
                raise ValueError("no")

        bus.publish(orders, 1)
        drain(harness, bus)

        bus.dead_letters(orders, group="billing").replay()
        drain(harness, bus)

        assert (billing, audit) == ([1, 1], [1])

    @case("F.13")
    def test_looking_at_dead_letters_changes_nothing(self, harness: Harness) -> None:
        numbers, bus = dead_numbers(harness, 5)
        letters = bus.dead_letters(numbers)

        looks = [letters.list() for _ in range(3)]
        first = letters.get(looks[0][0].id)

        assert looks[0] == looks[1] == looks[2]
        assert len(looks[0]) == 5
        assert first == looks[0][0]
        assert letters.list(limit=2) == looks[0][:2]
        assert letters.get("no such id") is None

    @case("F.13")
    def test_what_is_counted_is_what_is_seen(self, harness: Harness) -> None:
        numbers, bus = dead_numbers(harness, 3)
        bus.publish_many(numbers, range(4))
        if harness.capabilities.delay:
            bus.publish(numbers, 4, delay=60.0)
        admin = bus.link.backend.admin()

        try:
            counts = [admin.count(address) for address in (numbers.address, numbers.address.dead_letters)]
            seen = [
                len(admin.browse(address, limit=100)) for address in (numbers.address, numbers.address.dead_letters)
            ]
            with pytest.raises(NotFound):
                admin.count(Queue(harness.unique("missing")).address)
        finally:
            admin.close()

        assert counts == seen
        assert counts[0] >= 4
        assert counts[1] == 3

    @case("F.14")
    def test_dead_letters_are_corrected_discarded_and_purged(self, harness: Harness) -> None:
        numbers, bus = dead_numbers(harness, 6)
        letters = bus.dead_letters(numbers)
        first, second, *others = letters.list()

        corrected = Message(id=first.id, body=b"100", key="k", headers={"corrected": "yes"}, content_type=JSON_TYPE)
        bus.forward(numbers, corrected)
        counts = [letters.purge([first.id]), letters.purge(where=lambda letter: letter.id == second.id)]
        left = [letter.id for letter in letters.list()]
        counts += [letters.purge(["no such id"]), letters.purge(), letters.purge()]

        assert counts == [1, 1, 0, 4, 0]
        assert left == [letter.id for letter in others]
        assert letters.list() == []
        assert [(one.id, one.payload, one.key, one.headers, one.attempt) for one in take_all(bus, numbers)] == [
            (first.id, 100, "k", {"corrected": "yes"}, 1)
        ]

    @case("F.14", needs=("ttl",))
    def test_a_dead_letter_stays_when_the_time_of_its_message_is_over_and_can_be_replayed(
        self, harness: Harness
    ) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        letters = bus.dead_letters(numbers)
        with bus.subscription(numbers) as messages:
            bus.publish(numbers, 7, ttl=5.0)
            over = time.monotonic() + 5.2
            [delivery] = harness.take(messages, 1)
            delivery.reject("for the test")
            harness.wait(letters.list)
        harness.wait(lambda: time.monotonic() > over)

        [dead] = letters.list()
        replayed = letters.replay()

        assert (dead.reason, replayed) == ("for the test", 1)
        assert [one.payload for one in take_all(bus, numbers)] == [7]

    @pytest.mark.parametrize("when", ["before", "after", "while it fails"])
    @case("F.15")
    def test_a_middleware_that_raises_fails_the_attempt_and_the_consumer_lives(
        self, harness: Harness, when: str
    ) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        done: list[int] = []

        @bus.wrap
        @contextmanager
        def commit(delivery: Delivery[int]) -> Iterator[None]:
            broken = delivery.payload == 1 or (delivery.payload == 2 and delivery.attempt == 1)
            if broken and when == "before":
                raise ConnectionError("the hook failed")
            try:
                yield
            except ValueError as error:
                raise ConnectionError("the hook failed") from error
            if broken and when == "after":
                raise ConnectionError("the hook failed")
            done.append(delivery.payload)

        @bus.on(numbers, concurrency=2, retry=Retry(attempts=2, backoff=fixed(0.02), never=(ValueError,)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            if when == "while it fails" and (number == 1 or (number == 2 and delivery.attempt == 1)):
                raise ValueError("the handler failed")

        ids = bus.publish_many(numbers, range(6))

        trace = drain(harness, bus)

        assert sorted(done) == [0, 2, 3, 4, 5]
        outcomes = [[(one.outcome, str(one.error)) for one in trace if one.message_id == id] for id in ids]
        assert outcomes[1] == [("retry", "the hook failed"), ("dead", "the hook failed")]
        assert outcomes[2] == [("retry", "the hook failed"), ("done", "None")]
        [dead] = bus.dead_letters(numbers).list()
        assert (dead.id, dead.reason) == (ids[1], "ConnectionError after 2 attempts: the hook failed")

    @case("F.15")
    def test_a_filter_that_raises_fails_the_attempt_and_the_consumer_lives(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        done: list[int] = []
        asked: list[str] = []

        def choose(message: Message) -> bool:
            asked.append(message.id)
            if asked.count(message.id) == 1:
                raise ConnectionError("the filter failed")
            return True

        bus.on(numbers, where=choose, retry=Retry(attempts=2, backoff=fixed(0.02)))(done.append)
        bus.publish_many(numbers, range(4))

        trace = drain(harness, bus)

        assert sorted(done) == [0, 1, 2, 3]
        assert Counter((one.outcome, str(one.error)) for one in trace) == {
            ("retry", "the filter failed"): 4,
            ("done", "None"): 4,
        }

    @case("F.16")
    def test_what_a_failed_attempt_staged_is_not_sent_and_what_it_published_is(self, harness: Harness) -> None:
        orders, mails, alarms = (Queue(harness.unique(stem), str) for stem in ("orders", "mails", "alarms"))
        bus = harness.bus()
        mailed: list[str] = []
        alarmed: list[str] = []
        bus.on(mails, concurrency=1)(mailed.append)
        bus.on(alarms)(alarmed.append)

        @bus.on(orders, retry=Retry(attempts=2, backoff=fixed(0.02)))
        def handle(order: str, delivery: Delivery[str], bus: Bus) -> None:
            delivery.publish(mails, f"{order} first, attempt {delivery.attempt}")
            delivery.publish(mails, f"{order} second, attempt {delivery.attempt}")
            bus.publish(alarms, f"{order}, attempt {delivery.attempt}")
            if order == "bad" or delivery.attempt == 1:
                raise ConnectionError(order)

        bus.publish(orders, "good")
        bus.publish(orders, "bad")

        drain(harness, bus)

        assert sorted(mailed) == ["good first, attempt 2", "good second, attempt 2"]
        assert sorted(alarmed) == [f"{order}, attempt {attempt}" for order in ("bad", "good") for attempt in (1, 2)]

    @case("F.17")
    def test_a_poisonous_message_does_not_take_its_neighbours_along(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        attempts: dict[int, list[int]] = {number: [] for number in range(50)}

        @bus.on(numbers, concurrency=8, retry=Retry(attempts=3, backoff=fixed(0.02)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            attempts[number].append(delivery.attempt)
            if number == 13:
                raise ValueError("poison")

        bus.publish_many(numbers, range(50))

        drain(harness, bus)

        assert attempts == {number: [1, 2, 3] if number == 13 else [1] for number in range(50)}
        assert bodies(bus.dead_letters(numbers).list()) == [b"13"]

    @case("F.18")
    def test_attempts_are_counted_over_consumers_that_come_and_go(self, harness: Harness) -> None:
        words = Queue(harness.unique("words"), str)
        attempts: list[tuple[int, int]] = []

        def consumer(number: int) -> Bus:
            bus = harness.bus()

            @bus.on(words, retry=Retry(attempts=3, backoff=fixed(2.0)))
            def handle(word: str, delivery: Delivery[str]) -> None:
                attempts.append((number, delivery.attempt))
                raise ConnectionError(word)

            return bus

        buses = [consumer(number) for number in range(3)]
        buses[0].publish(words, "flaky")

        for number, bus in enumerate(buses):
            with bus.worker():
                harness.wait(lambda number=number: len(attempts) > number)  # type: ignore[misc]

        assert attempts == [(0, 1), (1, 2), (2, 3)]
        assert [dead.attempts for dead in buses[0].dead_letters(words).list()] == [3]

    @pytest.mark.slow
    @case("F.18", needs=("survives_process", "processes"))
    def test_attempts_are_counted_over_processes_each_of_which_is_killed_after_one(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        bus.publish(words, "flaky")
        letters = bus.dead_letters(words)
        backoff = str(1.0 + 2.0 * harness.scale)  # longer than it takes to see the failure and to kill
        processes = []

        for attempt in (1, 2, 3):
            processes.append(harness.consumer("fail_and_wait", words.name, backoff, url=short_lease(harness)))
            processes[-1].wait_line("attempt")
            if attempt < 3:  # the failure is noted when the message waits for its retry
                harness.wait(lambda: (depth := harness.depth(words)).delayed and not depth.inflight)
            else:
                harness.wait(letters.list)
            processes[-1].kill()

        assert [process.lines() for process in processes] == [["attempt 1"], ["attempt 2"], ["attempt 3"]]
        assert [(dead.attempts, dead.error_type) for dead in letters.list()] == [(3, "ConnectionError")]

    @case("F.19")
    def test_no_limit_of_the_broker_ends_a_message_before_its_policy_does(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        attempts: list[int] = []

        @bus.on(words, retry=Retry(attempts=30, backoff=fixed(0.005)))
        def handle(word: str, delivery: Delivery[str]) -> None:
            attempts.append(delivery.attempt)
            raise ConnectionError(word)

        bus.publish(words, "flaky")

        drain(harness, bus)

        assert attempts == list(range(1, 31))
        assert [dead.attempts for dead in bus.dead_letters(words).list()] == [30]

    @case("F.20")
    def test_a_middleware_that_swallows_errors_changes_nothing_wherever_it_stands(self, harness: Harness) -> None:
        inside, outside, bus = (
            Queue(harness.unique("inside"), str),
            Queue(harness.unique("outside"), str),
            harness.bus(),
        )
        seen_by_watch: list[tuple[str, str]] = []

        @contextmanager
        def swallow(delivery: Delivery[str]) -> Iterator[None]:
            with suppress(ValueError):
                yield

        @contextmanager
        def watch(delivery: Delivery[str]) -> Iterator[None]:
            try:
                yield
            except ValueError as error:
                seen_by_watch.append((delivery.destination.name, str(error)))
                raise

        def handle(word: str) -> None:
            raise ValueError(word)

        for queue, around in ((inside, (watch, swallow)), (outside, (swallow, watch))):
            part = Handlers()
            for middleware in around:
                part.wrap(middleware)
            part.on(queue, retry=Retry(attempts=2, backoff=fixed(0.02)))(handle)
            bus.include(part)
            bus.publish(queue, "bad")

        trace = drain(harness, bus)

        for queue in (inside, outside):
            assert [(one.attempt, one.outcome) for one in trace.of(queue.name)] == [(1, "retry"), (2, "dead")]
            assert [dead.error_type for dead in bus.dead_letters(queue).list()] == ["ValueError"]
        assert seen_by_watch == [(outside.name, "bad")] * 2

    @case("F.24")
    def test_dead_letters_that_are_deleted_while_they_are_needed_are_made_again(self, harness: Harness) -> None:
        orders, bus = Topic(harness.unique("orders"), int, groups=["billing"]), harness.bus()
        seen: list[int] = []

        @bus.on(orders, group="billing")
        def handle(number: int) -> None:
            seen.append(number)
            raise Reject(f"number {number}")

        def dead() -> int:
            return harness.depth(orders, "billing", dead=True).ready

        with bus.worker():
            bus.publish(orders, 1)
            harness.wait(lambda: dead() == 1)
            harness.delete(orders, "billing", dead=True)
            gone = [depth for depth in harness.describe() if depth.address.dead and depth.address.name == orders.name]
            bus.publish(orders, 2)
            harness.wait(lambda: dead() == 1)
            harness.wait_empty(orders, "billing")

        assert gone == []
        assert seen[:2] == [1, 2]
        letters = bus.dead_letters(orders, group="billing").list()
        assert [(letter.message.body, letter.reason, letter.attempts) for letter in letters] == [(b"2", "number 2", 1)]

    @case("F.24")
    def test_a_bus_that_may_not_make_dead_letters_keeps_the_original_until_they_are_there(
        self, harness: Harness
    ) -> None:
        numbers, bus, owner = Queue(harness.unique("numbers"), int), harness.bus(declare="never"), harness.bus()
        owner.declare(numbers)
        tries: list[int] = []

        @bus.on(numbers, retry=Retry(attempts=1))
        def handle(number: int, delivery: Delivery[int]) -> None:
            tries.append(delivery.attempt)
            raise ValueError("no")

        harness.delete(numbers, dead=True)
        owner.publish(numbers, 7)
        with bus.worker():
            harness.wait(lambda: len(tries) >= (2 if harness.capabilities.release else 1))
            with pytest.raises(NotFound, match=numbers.name):
                bus.dead_letters(numbers).list()
            harness.bus().declare(numbers)
            harness.wait(lambda: harness.depth(numbers, dead=True).ready == 1)
            harness.wait_empty(numbers)

        assert set(tries) == {1}
        assert [dead.message.body for dead in owner.dead_letters(numbers).list()] == [b"7"]

    @case("F.25")
    def test_one_retry_policy_gives_the_same_trace_everywhere(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        policy = Retry(attempts=3, backoff=fixed(0.02), never=(KeyError,))

        @bus.on(words, retry=policy)
        def handle(word: str, delivery: Delivery[str]) -> None:
            act(word, delivery.attempt)

        ids = {bus.publish(words, word): word for word in GOLDEN}

        trace = drain(harness, bus)

        found: dict[str, list[str]] = {word: [] for word in GOLDEN}
        for one in trace:
            found[ids[one.message_id]].append(f"{one.attempt} {one.outcome} {type(one.error).__name__}")
        assert found == GOLDEN
        reasons = {ids[dead.id]: f"{dead.attempts} {dead.reason}" for dead in bus.dead_letters(words).list()}
        assert reasons == {
            "broken": "3 ValueError after 3 attempts: broken",
            "refused": "1 KeyError, which is not retried: 'refused'",
            "late": "3 RetryLater after 3 attempts: busy",
            "rejected": "2 of no use",
        }

    @case("F.25")
    def test_the_same_waits_are_asked_for_everywhere_and_none_is_shorter(self, harness: Harness) -> None:
        ask_for_the_golden_waits(harness, ordered=False)

    @case("F.25", needs=("order_by_key",))
    def test_the_same_waits_are_asked_for_in_order_and_none_is_shorter(self, harness: Harness) -> None:
        ask_for_the_golden_waits(harness, ordered=True)

    @pytest.mark.slow
    @case("F.26", needs=("survives_process", "processes", "lost"))
    def test_a_message_that_kills_its_process_dies_of_crashes_and_its_neighbours_live(self, harness: Harness) -> None:
        name, bus, url = harness.unique("numbers"), harness.bus(), short_lease(harness)
        numbers = Queue(name, int)
        bus.publish_many(numbers, range(30))
        letters = bus.dead_letters(numbers)

        killed = []
        for _ in range(3):  # two in company of others, one alone
            killed.append(harness.consumer("consume_poison", name, "13", url=url))
            killed[-1].wait()
        survivor = harness.consumer("consume_poison", name, "13", url=url)
        [dead] = harness.wait(letters.list, within=20.0)

        assert (dead.message.body, dead.reason.partition(":")[0]) == (b"13", "crashes")
        others = {str(number) for number in range(30)} - {"13"}
        harness.wait(lambda: {line for one in (*killed, survivor) for line in one.lines()} == others, within=20.0)

    @pytest.mark.slow
    @case("F.26", needs=("survives_process", "processes", "lost", "inject"))
    def test_a_foreign_message_that_kills_its_process_dies_of_crashes_too(self, harness: Harness) -> None:
        name, bus, url = harness.unique("numbers"), harness.bus(), short_lease(harness)
        numbers = Queue(name, int)
        bus.declare(numbers)
        for number in range(5):
            harness.inject(numbers, b"%d" % number, {})
        letters = bus.dead_letters(numbers)

        killed = []
        for _ in range(3):  # two in company of others, one alone
            killed.append(harness.consumer("consume_poison", name, "3", url=url))
            killed[-1].wait()
        harness.consumer("consume_poison", name, "3", url=url)
        [dead] = harness.wait(letters.list, within=20.0)

        assert (dead.message.body, dead.reason.partition(":")[0]) == (b"3", "crashes")

    @pytest.mark.slow
    @case("F.26", needs=("survives_process", "processes", "lost"))
    def test_what_speaks_against_a_message_is_not_forgotten_when_it_is_given_back(self, harness: Harness) -> None:
        name, url = harness.unique("numbers"), short_lease(harness)
        harness.bus().publish_many(Queue(name, int), range(3))
        holder = harness.consumer("hold_alone", name, "1", url=url)
        holder.wait_line("alone")
        holder.kill()

        bus, solo = harness.bus(url), []
        for _ in range(2):  # by two holders, twice each
            with closing(receiver_of(bus, name)) as receiver:
                for _ in range(2):
                    suspect = take_one(receiver, b"1", within=20.0 * harness.scale)
                    solo.append(suspect.solo)
                    receiver.settle([Release(suspect)])
                receiver.flush(5.0)
        assert solo == [1, 1, 1, 1]

    @case("F.26")
    def test_running_alone_speaks_against_nobody_who_is_given_back_alive(self, harness: Harness) -> None:
        name, bus = harness.unique("numbers"), harness.bus()
        bus.publish(Queue(name, int), 1)

        with closing(receiver_of(bus, name)) as receiver:
            begin_alone(harness, receiver)
        with closing(receiver_of(bus, name)) as receiver:
            assert take_one(receiver, b"1", within=20.0 * harness.scale).solo == 0

    @pytest.mark.slow
    @case("F.26", needs=("lost", "kill_connections"))
    def test_running_alone_speaks_against_nobody_whose_connection_breaks_meanwhile(self, harness: Harness) -> None:
        for noticed in (True, False):
            name, bus = harness.unique("numbers"), harness.bus()
            bus.publish(Queue(name, int), 1)
            with closing(receiver_of(bus, name)) as receiver:
                begin_alone(harness, receiver)
                harness.wait(harness.kill_connections)
                with suppress(Unavailable):  # unless it holds on to what it has
                    for _ in range(30 if noticed else 0):
                        harness.kill_connections()
                        receiver.receive(0, 0.1)
            with closing(receiver_of(harness.bus(), name)) as receiver:
                assert take_one(receiver, b"1", within=20.0 * harness.scale).solo == 0

    @pytest.mark.slow
    @case("F.27", needs=("survives_process", "processes"))
    def test_a_replay_that_is_killed_loses_nothing(self, harness: Harness) -> None:
        numbers, bus = dead_numbers(harness, 40)
        letters = bus.dead_letters(numbers)

        process = harness.consumer("replay_slowly", numbers.name, "2")
        process.wait_line("begun")
        process.kill()
        process.wait()

        left = [letter.id for letter in letters.list()]
        replayed = [delivery.id for delivery in take_all(bus, numbers)]
        assert left
        assert replayed
        assert len(set(left) | set(replayed)) == 40
        assert len(left) + len(replayed) == 40 or not harness.capabilities.atomic


def begin_alone(harness: Harness, receiver: Receiver) -> None:
    """As the core does before it runs a suspect alone."""
    delivery = take_one(receiver, b"1", within=20.0 * harness.scale)
    receiver.flush(5.0)
    receiver.isolate(delivery)


# Of each message: attempt, outcome and what was raised.
GOLDEN = {
    "fine": ["1 done NoneType"],
    "flaky": ["1 retry ConnectionError", "2 done NoneType"],
    "broken": ["1 retry ValueError", "2 retry ValueError", "3 dead ValueError"],
    "refused": ["1 dead KeyError"],
    "late": ["1 retry NoneType", "2 retry NoneType", "3 dead NoneType"],
    "rejected": ["1 retry ValueError", "2 dead NoneType"],
    "settled": ["1 done NoneType"],
}

FAILURES = {"fine": 0, "flaky": 1, "stubborn": 3}
# Of each message: attempt, hand-out, outcome, and each wait that the backend was asked for after it.
GOLDEN_WAITS: dict[str, list[tuple[int, int, str, list[float]]]] = {
    "fine": [(1, 1, "done", [])],
    "flaky": [(1, 1, "retry", [0.0625]), (2, 2, "done", [])],
    "stubborn": [(1, 1, "retry", [0.0625]), (2, 2, "retry", [0.125]), (3, 3, "retry", [0.125]), (4, 4, "done", [])],
    "broken": [(1, 1, "retry", [0.0625]), (2, 2, "retry", [0.125]), (3, 3, "retry", [0.125]), (4, 4, "dead", [])],
}


def waits_asked(
    asked: dict[tuple[str, int], list[float]],
) -> tuple[Callable[[Settlement], None], Callable[[Outgoing], None]]:
    """
    For `Faults.settle` and `Faults.publish`, which let everything pass: they note how long a failed attempt is to be
    waited after, by message and attempt, whether it stays in its place or a copy takes that.
    """

    def publish(message: Outgoing) -> None:
        if message.envelope.attempt > 1 and not message.address.dead:
            asked.setdefault((message.id, message.envelope.attempt - 1), []).append(message.delay)

    def settle(settlement: Settlement) -> None:
        if isinstance(settlement, Release):
            if settlement.attempt is not None:
                asked.setdefault((settlement.delivery.id, settlement.attempt - 1), []).append(settlement.after)
            return
        for copy in settlement.copies:
            publish(copy)

    return settle, publish


def ask_for_the_golden_waits(harness: Harness, *, ordered: bool) -> None:
    words: Queue[str] = Queue(harness.unique("words"), str, key=(lambda word: word) if ordered else None)
    bus, faults = harness.faulty_bus()
    asked: dict[tuple[str, int], list[float]] = {}
    faults.settle, faults.publish = waits_asked(asked)
    begun: dict[str, list[float]] = {word: [] for word in GOLDEN_WAITS}
    failed: dict[str, list[float]] = {word: [] for word in GOLDEN_WAITS}

    @bus.on(words, retry=Retry(attempts=4, backoff=linear(step=0.0625, cap=0.125, jitter=False)))
    def handle(word: str, delivery: Delivery[str]) -> None:
        begun[word].append(time.monotonic())
        failed[word].append(time.monotonic())
        if word == "broken" or delivery.attempt <= FAILURES[word]:
            raise ConnectionError(word)

    ids = {bus.publish(words, word): word for word in GOLDEN_WAITS}

    trace = drain(harness, bus)

    found: dict[str, list[tuple[int, int, str, list[float]]]] = {word: [] for word in GOLDEN_WAITS}
    for one in trace:
        of = found[ids[one.message_id]]
        of.append((one.attempt, len(of) + 1, one.outcome, asked.get((one.message_id, one.attempt), [])))
    assert found == GOLDEN_WAITS
    assert {word: len(times) for word, times in begun.items()} == {word: len(of) for word, of in found.items()}
    for word, of in found.items():
        waits = [later - earlier for earlier, later in zip(failed[word], begun[word][1:], strict=False)]
        least = [wait for _, _, _, [wait] in of[:-1]]
        assert all(wait >= bound - 0.002 for wait, bound in zip(waits, least, strict=True)), (word, waits)


def act(word: str, attempt: int) -> None:
    """Behave as the word says."""
    match word, attempt:
        case "flaky", 1:
            raise ConnectionError(word)
        case ("broken", _) | ("rejected", 1):
            raise ValueError(word)
        case "refused", _:
            raise KeyError(word)
        case "late", _:
            raise RetryLater(after=0.02, reason="busy")
        case "rejected", _:
            raise Reject("of no use")
        case "settled", _:
            raise Ack


def drain(harness: Harness, *buses: Bus) -> Trace:
    """Let handlers work until nothing is left to do."""
    return run_until_idle(*buses, timeout=20.0 * harness.scale)


def refuse_dead_message(message: Outgoing) -> PublishFailed | None:
    """A system that takes no dead letters, where they are published."""
    return PublishFailed("the dead letters take nothing") if message.address.dead else None


def refuse_dead_copy(settlement: Settlement) -> Unavailable | None:
    """A system that takes no dead letters, where they are part of a settlement."""
    copies = settlement.copies if isinstance(settlement, Done) else ()
    return Unavailable("the dead letters take nothing") if any(copy.address.dead for copy in copies) else None


def dead_numbers(harness: Harness, count: int) -> tuple[Queue[int], Bus]:
    """A queue whose messages 0, 1, 2 ... have all been rejected, and a bus without handlers."""
    numbers, failing = Queue(harness.unique("numbers"), int), harness.bus()

    @failing.on(numbers, concurrency=1)
    def handle(number: int) -> None:
        raise Reject("for the test")

    failing.publish_many(numbers, range(count))
    drain(harness, failing)
    return numbers, harness.bus()


def take_all(bus: Bus, source: Queue[Any]) -> list[Delivery[Any]]:
    """Everything that waits in a queue, acknowledged; it is over when nothing comes for a second and nothing waits there."""
    taken: list[Delivery[Any]] = []
    late = time.monotonic() + 60.0
    with closing(bus.link.backend.admin()) as admin, bus.subscription(source, prefetch=1000) as messages:
        while (deliveries := messages.receive(max=1000, timeout=1.0)) or admin.count(source.address):
            assert time.monotonic() < late, f"{source} is not empty after a minute; {len(taken)} came"
            for delivery in deliveries:
                delivery.ack()
            taken += deliveries
    return taken


def left(harness: Harness, source: Queue[Any]) -> int:
    """How many messages are not settled."""
    depth = harness.depth(source)
    return depth.ready + depth.inflight + depth.delayed


def bodies(letters: list[DeadLetter[int]]) -> list[bytes]:
    return sorted(letter.message.body for letter in letters)
