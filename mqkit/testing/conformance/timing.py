"""G: delays, expiry, priorities."""

from __future__ import annotations

import time

import pytest

from mqkit import Delivery, Queue, Retry, Topic, fixed
from mqkit.errors import CapabilityMissing, ConfigError
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import drain
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import by_key, short_lease
from mqkit.testing.conformance.programs_ef import Step, steps

LATE = 5.0  # seconds a busy machine may add to any delay
CENTURIES = 1e10


class TestTiming:
    """G. Delay, time to live, priority."""

    @case("G.01", needs=("delay",))
    def test_a_delayed_message_is_never_early(self, harness: Harness) -> None:
        delays, bus = Queue(harness.unique("delays"), float), harness.bus()
        published: dict[float, float] = {}
        arrived: dict[float, float] = {}

        @bus.on(delays)
        def handle(delay: float) -> None:
            arrived[delay] = time.monotonic()

        with bus.worker():
            for delay in (0.4, 0.05, 0.2):
                published[delay] = time.monotonic()
                bus.publish(delays, delay, delay=delay)
            harness.wait(lambda: len(arrived) >= 3)

        waited = {delay: arrived[delay] - published[delay] for delay in arrived}
        assert all(delay <= wait < delay + LATE * harness.scale for delay, wait in waited.items()), waited

    @case("G.02", needs=("delay",))
    def test_what_is_due_now_arrives_at_once_and_once_and_the_past_is_refused(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        seen: list[str] = []
        bus.on(words, concurrency=1)(seen.append)

        bus.publish(words, "now", delay=0.0)
        with pytest.raises(ConfigError, match=r"-1"):
            bus.publish(words, "past", delay=-1.0)
        drain(harness, bus)

        assert seen == ["now"]

    @case("G.03", needs=("delay",))
    def test_a_delay_of_any_length_is_kept_or_refused_by_name(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        seen: list[str] = []
        bus.on(words)(seen.append)

        if harness.capabilities.delay < CENTURIES:
            with pytest.raises(CapabilityMissing, match=harness.capabilities.name):
                bus.publish(words, "in centuries", delay=CENTURIES)
        else:
            bus.publish(words, "in centuries", delay=CENTURIES)
        bus.publish(words, "soon", delay=0.2)
        with bus.worker():
            harness.wait(lambda: seen)

        assert seen == ["soon"]

    @case("G.04", needs=("delay",))
    def test_a_short_delay_is_not_held_behind_a_long_one(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []
        bus.on(numbers)(seen.append)

        with bus.worker():
            bus.publish(numbers, 3600, delay=3600.0)
            bus.publish(numbers, 60, delay=60.0)
            bus.publish(numbers, 0, delay=0.1)
            harness.wait(lambda: seen)

        assert seen == [0]

    @case("G.05", needs=("delay", "survives_process", "processes"))
    def test_a_delayed_message_outlives_the_process_that_published_it(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        arrived: list[float] = []

        @bus.on(words)
        def handle(word: str) -> None:
            arrived.append(time.monotonic())

        began = time.monotonic()
        publisher = harness.consumer("publish_delayed", words.name, "2.0", url=short_lease(harness))
        publisher.wait_line("published")
        publisher.kill()
        publisher.wait()
        drain(harness, bus)

        assert len(arrived) == 1
        assert arrived[0] >= began + 2.0

    @case("G.07", needs=("delay",))
    def test_delays_are_told_apart_as_finely_as_declared(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        step = max(0.25 * harness.scale, 2 * harness.capabilities.delay_resolution)
        seen: list[int] = []
        bus.on(numbers, concurrency=1)(seen.append)

        with bus.worker():  # nobody looks meanwhile: to look at what waits may hold it up
            bus.publish(numbers, -1, delay=step)  # the first delay of a system may have to make room for delays
            harness.wait(lambda: seen == [-1], within=30.0)
            first = time.monotonic() + 8 * step
            for number in (3, 1, 5, 2, 4, 0):
                bus.publish(numbers, number, delay=first + number * step - time.monotonic())
            assert time.monotonic() < first
            harness.wait(lambda: len(seen) == 7, within=30.0)

        assert seen == list(range(-1, 6))

    @case("G.08", needs=("ttl", "delay"))
    def test_an_expired_message_is_not_handled_but_dies_and_others_live(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        seen: list[str] = []
        bus.on(words)(seen.append)

        bus.publish(words, "far", ttl=3600.0)
        bus.publish(words, "counted from when it is due", delay=6.0, ttl=5.0)
        expired = bus.publish(words, "short", ttl=0.05)
        over = time.monotonic() + 0.2
        harness.wait(lambda: time.monotonic() > over)
        drain(harness, bus)

        assert sorted(seen) == ["counted from when it is due", "far"]
        [dead] = bus.dead_letters(words).list()
        assert (dead.id, dead.reason.partition(":")[0], dead.attempts) == (expired, "expired", 1)

    @case("G.09", needs=("ttl",))
    def test_a_message_that_expires_while_it_waits_for_its_retry_is_not_tried_again(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str), harness.bus()
        attempts: list[int] = []

        @bus.on(words, retry=Retry(attempts=5, backoff=fixed(6.0)))
        def handle(word: str, delivery: Delivery[str]) -> None:
            attempts.append(delivery.attempt)
            raise ConnectionError(word)

        with bus.worker():
            bus.publish(words, "flaky", ttl=5.0)
            [dead] = harness.wait(bus.dead_letters(words).list)

        assert attempts == [1]
        assert dead.reason.partition(":")[0] == "expired"

    @case("G.10", needs=("priorities",))
    def test_under_backlog_the_higher_priority_goes_first_and_equals_keep_their_order(self, harness: Harness) -> None:
        words, bus = Queue(harness.unique("words"), str, priorities=3), harness.bus()
        seen: list[str] = []
        bus.on(words, concurrency=1)(seen.append)
        for number in range(5):
            for priority in (0, 2, 1):
                bus.publish(words, f"{priority} {number}", priority=priority)

        drain(harness, bus)

        assert seen == [f"{priority} {number}" for priority in (2, 1, 0) for number in range(5)]

    @case("G.11", needs=("delay", "order_by_key"))
    def test_a_delayed_message_takes_its_place_in_its_key_when_it_is_due(self, harness: Harness) -> None:
        queue, bus = steps(harness.unique("steps")), harness.bus()
        seen: list[Step] = []
        bus.on(queue)(seen.append)

        wait = 2.0 * harness.scale
        bus.publish(queue, Step("due before anybody looks", 0), delay=wait)
        over = time.monotonic() + wait + 0.1
        for key in ("due before anybody looks", "due while they look"):
            bus.publish_many(queue, [Step(key, 1), Step(key, 2)])
        harness.wait(lambda: time.monotonic() > over)
        bus.publish(queue, Step("due while they look", 0), delay=0.5)
        drain(harness, bus)

        assert by_key(seen) == {"due before anybody looks": [1, 2, 0], "due while they look": [1, 2, 0]}

    @case("G.13", needs=("delay",))
    def test_a_delayed_event_reaches_the_groups_that_exist_when_it_is_due(self, harness: Harness) -> None:
        topic, bus = Topic(harness.unique("events"), str, groups=["early"]), harness.bus()
        seen: list[tuple[str, str]] = []
        bus.on(topic, group="early")(lambda event: seen.append(("early", event)))
        bus.on(topic, group="late")(lambda event: seen.append(("late", event)))

        bus.publish(topic, "before")
        bus.publish(
            topic, "meanwhile", delay=4.0 * harness.scale
        )  # long enough for a worker to start on a busy machine
        drain(harness, bus)

        assert sorted(seen) == [("early", "before"), ("early", "meanwhile"), ("late", "meanwhile")]
