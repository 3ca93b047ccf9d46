"""E: order, of a single consumer and per key, over retries, many consumers and their deaths."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest

from mqkit import Delivery, Queue, Retry, Topic, fixed
from mqkit.errors import Unencodable
from mqkit.testing import run_until_idle
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.programs_ef import Step, steps


class TestOrdering:
    """E. Ordering."""

    @case("E.01")
    def test_a_single_consumer_keeps_the_order_of_publishing(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: list[int] = []
        bus.on(numbers, concurrency=1)(seen.append)
        bus.publish_many(numbers, range(200))

        with bus.worker():
            harness.wait(lambda: len(seen) >= 200)

        assert seen == list(range(200))

    @case("E.02", needs=("order_by_key",))
    def test_the_order_of_each_key_holds_with_several_consumers(self, harness: Harness) -> None:
        queue, buses = steps(harness.unique("steps")), [harness.bus() for _ in range(3)]
        seen: list[Step] = []
        for bus in buses:
            bus.on(queue, concurrency=4)(seen.append)
        buses[0].publish_many(queue, [Step(f"key {key}", number) for number in range(15) for key in range(20)])

        with buses[0].worker(), buses[1].worker(), buses[2].worker():
            harness.wait(lambda: len(seen) >= 300)

        assert by_key(seen) == {f"key {key}": list(range(15)) for key in range(20)}

    @case("E.03", needs=("order_by_key",))
    def test_other_keys_go_on_while_one_is_blocked(self, harness: Harness) -> None:
        queue, bus, unblock = steps(harness.unique("steps")), harness.bus(), threading.Event()
        seen: list[Step] = []

        @bus.on(queue, concurrency=4)
        def handle(step: Step) -> None:
            seen.append(step)
            if step == Step("blocked", 0):
                unblock.wait(20.0)

        bus.publish_many(queue, [Step(key, number) for number in range(10) for key in ("blocked", "free")])

        with bus.worker():
            harness.wait(lambda: by_key(seen)["free"] == list(range(10)))
            while_blocked = by_key(seen)["blocked"]
            unblock.set()
            harness.wait(lambda: len(seen) >= 20)

        assert while_blocked == [0]
        assert by_key(seen)["blocked"] == list(range(10))

    @case("E.04", needs=("order_by_key",))
    def test_a_retry_holds_its_key_back_exactly_where_order_was_asked_for(self, harness: Harness) -> None:
        topic = Topic(harness.unique("steps"), Step, key=lambda step: step.key)
        bus, retry = harness.bus(), Retry(attempts=3, backoff=fixed(0.5))
        ordered: list[int] = []
        loose: list[int] = []

        @bus.on(topic, group="ordered", order="key", retry=retry)
        def handle_in_order(step: Step, delivery: Delivery[Step]) -> None:
            ordered.append(step.number)
            fail_twice(step, delivery)

        @bus.on(topic, group="loose", order="none", retry=retry)
        def handle_at_once(step: Step, delivery: Delivery[Step]) -> None:
            loose.append(step.number)
            fail_twice(step, delivery)

        with bus.worker():
            bus.publish_many(topic, [Step("one", number) for number in range(3)])
            harness.wait(lambda: len(ordered) >= 5 and len(loose) >= 5)

        assert ordered == [0, 0, 0, 1, 2]
        assert loose[3:] == [0, 0]
        assert sorted(loose[:3]) == [0, 1, 2]

    @pytest.mark.slow
    @case("E.05", needs=("order_by_key", "survives_process", "processes"))
    def test_the_order_of_each_key_survives_failures_and_killed_consumers(self, harness: Harness) -> None:
        name, url, bus = harness.unique("steps"), short_lease(harness), harness.bus()
        bus.publish_many(steps(name), [Step(f"key{key}", number) for number in range(30) for key in range(10)])
        processes = [harness.consumer("consume_keyed", name, url=url) for _ in range(3)]

        def begun() -> list[tuple[int, Step]]:
            words = [line.split() for process in processes for line in process.lines()]
            return sorted((int(at), Step(key, int(number))) for at, key, number in words)

        for kill, handled in enumerate((40, 110, 180)):
            harness.wait(lambda handled=handled: len({step for _, step in begun()}) >= handled, within=40.0)  # type: ignore[misc]
            processes[kill].kill()
            processes.append(harness.consumer("consume_keyed", name, url=url))
        harness.wait(lambda: len({step for _, step in begun()}) == 300, within=60.0)

        for key, numbers in by_key([step for _, step in begun()]).items():
            # One that failed, or whose process was killed, begins again. Nothing is passed over, nothing settled comes again.
            steps_on = {later - earlier for earlier, later in pairwise([-1, *numbers])}
            assert steps_on <= {0, 1}, (key, numbers)

    @case("E.08", needs=("order_by_key",))
    def test_a_batch_that_is_refused_leaves_no_trace_in_the_order_of_a_key(self, harness: Harness) -> None:
        queue, bus = steps(harness.unique("steps")), harness.bus()
        seen: list[Step] = []
        bus.on(queue, concurrency=4)(seen.append)

        bus.publish_many(queue, [Step(f"key {key}", number) for number in range(20) for key in range(5)])
        with pytest.raises(Unencodable):
            bus.publish_many(queue, [Step("key 0", -1), Step("no\0key", -1), Step("key 1", -1)])
        bus.publish_many(queue, [Step(f"key {key}", number) for number in range(20, 40) for key in range(5)])
        run_until_idle(bus, timeout=20.0 * harness.scale)

        assert by_key(seen) == {f"key {key}": list(range(40)) for key in range(5)}


def by_key(seen: Sequence[Step]) -> defaultdict[str, list[int]]:
    """The numbers of each key, in the order they were handled."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for step in list(seen):
        found[step.key].append(step.number)
    return found


def fail_twice(step: Step, delivery: Delivery[Step]) -> None:
    if step.number == 0 and delivery.attempt < 3:
        raise ConnectionError("not yet")


def short_lease(harness: Harness) -> str:
    """The URL for cases that kill: where a lease guards what a process holds, it is one second."""
    return harness.url if harness.capabilities.lease is None else harness.url_with(lease=1.0)
