"""D: groups, consumers that share work, and how they come and go."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from mqkit import Broadcast, Bus, Queue, Topic
from mqkit.errors import ConfigError
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import drain
from mqkit.testing.conformance.harness import Harness
from mqkit.testing.conformance.ordering import short_lease


class TestGroups:
    """D. Groups and scaling."""

    @case("D.01")
    def test_each_of_two_groups_gets_every_message(self, harness: Harness) -> None:
        orders, bus = Topic(harness.unique("orders"), int, groups=["billing", "shipping"]), harness.bus()
        seen: dict[str, list[int]] = {"billing": [], "shipping": []}
        for group, found in seen.items():
            bus.on(orders, group=group)(found.append)

        bus.publish_many(orders, range(100))
        drain(harness, bus)

        assert {group: sorted(found) for group, found in seen.items()} == {group: list(range(100)) for group in seen}

    @case("D.02")
    def test_consumers_of_one_group_share_its_messages_and_each_gets_some(self, harness: Harness) -> None:
        orders, buses = Topic(harness.unique("orders"), int, groups=["billing"]), [harness.bus() for _ in range(3)]
        seen: list[int] = []
        everybody = threading.Barrier(3)

        def handler() -> Callable[[int], None]:
            first: list[int] = []

            def handle(number: int) -> None:
                if not first:
                    first.append(number)
                    everybody.wait(20.0)  # breaks if one of them gets nothing
                seen.append(number)

            return handle

        for bus in buses:
            bus.on(orders, group="billing", concurrency=1)(handler())
        with buses[0].worker(), buses[1].worker(), buses[2].worker():
            buses[0].publish_many(orders, range(300))
            harness.wait_empty(orders, "billing", within=30.0)

        assert not everybody.broken
        assert Counter(seen) == Counter(range(300))

    @case("D.03", needs=("broadcast",))
    def test_each_listener_gets_a_copy_from_now_on_and_leaves_nothing_behind(self, harness: Harness) -> None:
        ticks, sender, other = Broadcast(harness.unique("ticks"), int), harness.bus(), harness.bus()
        sender.publish(ticks, 0)

        with sender.subscription(ticks) as one, other.subscription(ticks) as two, other.subscription(ticks) as three:
            for number in (1, 2, 3):
                sender.publish(ticks, number)
            heard = [[one.payload for one in harness.take(messages, 3)] for messages in (one, two, three)]
        sender.publish(ticks, 4)

        assert heard == [[1, 2, 3]] * 3
        left = [depth for depth in harness.describe() if depth.address.name == ticks.name]
        assert sum(depth.ready + depth.inflight + depth.delayed for depth in left) == 0

    @case("D.04")
    def test_a_group_named_by_the_topic_misses_nothing_before_its_first_consumer(self, harness: Harness) -> None:
        orders = Topic(harness.unique("orders"), int, groups=["billing"])
        sender, reader = harness.bus(), harness.bus()
        sender.publish_many(orders, range(20))
        sender.close()

        with reader.subscription(Topic(orders.name, int), group="billing", prefetch=20) as messages:
            found = [delivery.payload for delivery in harness.take(messages, 20)]

        assert sorted(found) == list(range(20))

    @case("D.05", needs=("replay", "retention"))
    def test_where_a_group_starts_is_decided_once_when_it_is_new(self, harness: Harness) -> None:
        orders, bus = Topic(harness.unique("orders"), int, native=harness.retention(3600.0)), harness.bus()
        bus.publish_many(orders, range(10))

        with bus.subscription(orders, group="early", start="earliest") as messages:
            early = harness.take(messages, 10)
            for delivery in early:
                delivery.ack()
        with bus.subscription(orders, group="late", start="latest"):
            bus.publish(orders, 10)
        with bus.subscription(orders, group="early", start="earliest") as again:
            early += harness.take(again, 1)
        with bus.subscription(orders, group="late", start="earliest") as again:
            late = again.receive(max=20, timeout=5.0)

        assert sorted(delivery.payload for delivery in early) == list(range(11))
        assert [delivery.payload for delivery in late] == [10]

    @case("D.06")
    def test_a_consumer_that_joins_under_load_costs_and_repeats_nothing(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        seen: dict[str, list[int]] = {"first": [], "second": []}
        first.on(numbers, concurrency=2)(seen["first"].append)
        second.on(numbers, concurrency=2)(seen["second"].append)

        with publishing(harness, numbers, seen) as publisher, first.worker():
            harness.wait(lambda: seen["first"])
            with second.worker():
                harness.wait(lambda: seen["second"], within=30.0)
                count = publisher.stop()
                harness.wait_empty(numbers, within=30.0)

        assert Counter(seen["first"] + seen["second"]) == Counter(range(count))

    @case("D.07")
    def test_a_consumer_that_leaves_under_load_costs_and_repeats_nothing(self, harness: Harness) -> None:
        numbers, first, second = Queue(harness.unique("numbers"), int), harness.bus(), harness.bus()
        seen: dict[str, list[int]] = {"first": [], "second": []}
        first.on(numbers, concurrency=2)(seen["first"].append)
        second.on(numbers, concurrency=2)(seen["second"].append)

        with publishing(harness, numbers, seen) as publisher, first.worker():
            for _ in range(3):
                before = len(seen["second"])
                with second.worker():
                    harness.wait(lambda before=before: len(seen["second"]) > before, within=30.0)  # type: ignore[misc]
            count = publisher.stop()
            harness.wait_empty(numbers, within=30.0)

        assert Counter(seen["first"] + seen["second"]) == Counter(range(count))

    @pytest.mark.slow
    @case("D.15", needs=("survives_process", "processes"))
    def test_consumers_that_are_killed_under_load_lose_nothing(self, harness: Harness) -> None:
        numbers, bus, url = Queue(harness.unique("numbers"), int), harness.bus(), short_lease(harness)
        processes = [harness.consumer("count", numbers.name, "0.01", url=url) for _ in range(3)]

        bus.publish_many(numbers, range(500))
        for killed in processes[:2]:
            killed.wait_line(20)
            killed.kill()
        harness.wait_empty(numbers, within=60.0)
        processes[2].kill()

        seen = Counter(int(line) for process in processes for line in process.lines())
        assert set(seen) == set(range(500))
        # Only what a killed one had in hand, at work or finished and not yet settled, may come twice.
        assert sum(seen.values()) - 500 <= 2 * 100

    @case("D.09")
    def test_a_handler_that_is_stuck_holds_up_no_other(self, harness: Harness) -> None:
        slow, fast, bus = Queue(harness.unique("slow"), int), Queue(harness.unique("fast"), int), harness.bus()
        unblock = threading.Event()
        blocked: list[int] = []
        seen: list[int] = []

        @bus.on(slow, concurrency=1)
        def wait(number: int) -> None:
            blocked.append(number)
            unblock.wait(30.0)

        bus.on(fast)(seen.append)
        with bus.worker():
            bus.publish_many(slow, range(3))
            harness.wait(lambda: blocked)
            bus.publish_many(fast, range(100))
            harness.wait_empty(fast)
            while_stuck = list(blocked)
            unblock.set()
            harness.wait_empty(slow)

        assert while_stuck == [0]
        assert sorted(seen) == list(range(100))

    @case("D.11")
    def test_so_many_handlers_run_at_once_as_were_asked_for_and_never_more(self, harness: Harness) -> None:
        by_threads, by_tasks = Queue(harness.unique("threads"), int), Queue(harness.unique("tasks"), int)
        bus, together, lock = harness.bus(), threading.Barrier(4), threading.Lock()
        running: dict[str, int] = {"threads": 0, "tasks": 0}
        most: dict[str, int] = {"threads": 0, "tasks": 0}

        def enter(kind: str, change: int) -> None:
            with lock:
                running[kind] += change
                most[kind] = max(most[kind], running[kind])

        @bus.on(by_threads, concurrency=4)
        def handle(number: int) -> None:
            enter("threads", 1)
            together.wait(20.0)  # breaks if fewer than four ever run
            enter("threads", -1)

        @bus.on(by_tasks, concurrency=4)
        async def handle_in_task(number: int) -> None:
            enter("tasks", 1)
            while most["tasks"] < 4:  # noqa: ASYNC110  the event would belong to a loop that does not exist yet
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.001)
            enter("tasks", -1)

        bus.publish_many(by_threads, range(40))
        bus.publish_many(by_tasks, range(40))
        drain(harness, bus)

        assert most == {"threads": 4, "tasks": 4}
        assert not together.broken

    @pytest.mark.slow
    @case("D.12")
    def test_a_consumer_holds_a_bounded_share_of_a_large_backlog(self, harness: Harness) -> None:
        numbers, bus, total, quick = Queue(harness.unique("numbers"), int), harness.bus(), 20_000, 5_000
        unblock = threading.Event()
        done: list[int] = []

        @bus.on(numbers, concurrency=4)
        def handle(number: int) -> None:
            if len(done) >= quick:  # fast at first, so that a consumer may want to fetch far ahead
                unblock.wait(60.0)
            done.append(number)

        for first in range(0, total, 5000):
            bus.publish_many(numbers, range(first, first + 5000), timeout=60.0)
        with bus.subscription(numbers, prefetch=10) as messages:
            harness.take(messages, 10)
            by_pulling = harness.depth(numbers)
        with bus.worker():
            harness.wait(lambda: len(done) >= quick, within=60.0)
            harness.wait(lambda: harness.depth(numbers).inflight)
            by_handling = harness.depth(numbers)
            unblock.set()
            harness.wait_empty(numbers, within=60.0)

        assert (by_pulling.inflight, by_pulling.ready) == (10, total - 10)
        assert by_handling.inflight <= 2000
        assert by_handling.ready >= total - quick - 4000
        assert Counter(done) == Counter(range(total))

    @case("D.13")
    def test_two_handlers_of_one_source_on_a_bus_are_refused_before_anything_is_taken(self, harness: Harness) -> None:
        orders, words = Topic(harness.unique("orders"), int), Queue(harness.unique("words"), str)
        same_group, same_queue, fine = harness.bus(), harness.bus(), harness.bus()
        seen: list[object] = []
        for _ in range(2):
            same_group.on(orders, group="billing")(seen.append)
            same_queue.on(words)(seen.append)
        fine.on(orders, group="billing")(seen.append)
        fine.on(orders, group="shipping")(seen.append)
        same_queue.publish(words, "one")

        with pytest.raises(ConfigError, match="billing"):
            start(same_group)
        with pytest.raises(ConfigError, match=words.name):
            start(same_queue)
        start(fine)

        assert seen == []
        assert harness.depth(words).ready == 1

    @case("D.14", needs=("order_by_key", "survives_process", "processes"))
    def test_where_all_messages_have_one_key_one_consumer_works_and_another_takes_over(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int, key=lambda _: "one"), harness.bus()
        active = harness.consumer("hold_a_key", numbers.name, url=short_lease(harness))

        bus.publish_many(numbers, range(3))
        active.wait_line("0")
        with bus.subscription(numbers) as stand_by:
            meanwhile = stand_by.receive(timeout=0.3)
            active.kill()
            taken: list[int] = []
            for _ in range(3):
                [delivery] = harness.take(stand_by, 1, within=20.0)
                taken.append(delivery.payload)
                delivery.ack()

        assert meanwhile == []
        assert taken == [0, 1, 2]


class publishing:  # noqa: N801  used as `with publishing(...)`
    """Publishes 0, 1, 2 ... all the while, staying a little ahead of what was seen."""

    AHEAD = 50

    def __init__(self, harness: Harness, to: Queue[int], seen: dict[str, list[int]]) -> None:
        self._bus = harness.bus()
        self._to = to
        self._seen = seen
        self._stopped = threading.Event()
        self._count = 0
        self._thread = threading.Thread(target=self._publish)

    def __enter__(self) -> publishing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> int:
        """How many were published."""
        self._stopped.set()
        self._thread.join(30.0)
        return self._count

    def _publish(self) -> None:
        while not self._stopped.is_set():
            if self._count - sum(map(len, self._seen.values())) < self.AHEAD:
                self._bus.publish(self._to, self._count, timeout=30.0)
                self._count += 1


def start(bus: Bus) -> None:
    """Begin to consume, and stop."""
    with bus.worker():
        pass
