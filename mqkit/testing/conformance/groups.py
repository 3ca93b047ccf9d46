"""D: groups, consumers that share work, and how they come and go."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mqkit import Broadcast, Bus, Delivery, Queue, Retry, Topic, fixed
from mqkit.errors import ConfigError
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.failures import drain
from mqkit.testing.conformance.harness import Harness, Process
from mqkit.testing.conformance.ordering import lease_of, short_lease

MOST_HELD = 1000  # messages a consumer holds at once, however fast its handlers are


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
                    everybody.wait(20.0 * harness.scale)  # breaks if one of them gets nothing
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
            late = harness.take_only(again, 1)

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

        published = 0

        def at_work(process: Process) -> bool:
            """Has it handled some? However long its start takes, the others leave it something to do."""
            nonlocal published
            if published - sum(len(one.lines()) for one in processes) < 200:
                bus.publish_many(numbers, range(published, published + 100))
                published += 100
            return len(process.lines()) >= 20

        for killed in processes[:2]:
            harness.wait(lambda killed=killed: at_work(killed), within=40.0)  # type: ignore[misc]
            killed.kill()
        harness.wait_empty(numbers, within=60.0)
        processes[2].kill()

        seen = Counter(int(line) for process in processes for line in process.lines())
        assert set(seen) == set(range(published))
        # Only what a killed one had in hand, at work or finished and not yet settled, may come twice.
        assert sum(seen.values()) - published <= 2 * 100

    @case("D.08", needs=("order_by_key",))
    def test_consumers_that_come_and_go_while_a_message_waits_for_its_retry_change_neither_order_nor_count(
        self, harness: Harness
    ) -> None:
        numbers, first, second = Queue(harness.unique("n"), int, key=lambda _: "one"), harness.bus(), harness.bus()
        tries: list[tuple[str, int, int]] = []

        def consume(bus: Bus, name: str) -> None:
            @bus.on(numbers, retry=Retry(attempts=3, backoff=fixed(3.0 * harness.scale)))  # longer than joining takes
            def handle(number: int, delivery: Delivery[int]) -> None:
                tries.append((name, number, delivery.attempt))
                if number == 0 and delivery.attempt == 1:
                    raise ConnectionError("again")

        consume(first, "first")
        consume(second, "second")
        first.publish_many(numbers, range(5))
        with first.worker():
            harness.wait(lambda: tries)
            with second.worker():  # joins while number 0 waits for its second try, and goes again
                before = list(tries)
        with second.worker():  # takes over from the first, which has left
            harness.wait_empty(numbers)

        assert before == [("first", 0, 1)]
        found = [(number, attempt) for _, number, attempt in tries]
        if harness.forgets_attempts and found[:2] == [(0, 1), (0, 1)]:
            del found[0]
        assert found == [(0, 1), (0, 2), (1, 1), (2, 1), (3, 1), (4, 1)]
        assert second.dead_letters(numbers).list() == []

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

        assert len(while_stuck) == 1
        assert sorted(seen) == list(range(100))

    @case("D.10")
    def test_concurrency_changed_in_the_settings_holds_from_the_next_worker_on_and_loses_nothing(
        self, harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        numbers = Queue(harness.unique("numbers"), int)
        seen: list[int] = []
        most: list[int] = []

        for turn, concurrency in enumerate((2, 6, 1)):
            (tmp_path / "mqkit.toml").write_text(f'[bus.default.on."{numbers.name}"]\nconcurrency = {concurrency}')
            bus, running = harness.bus(), Running(concurrency)
            bus.on(numbers, concurrency=3)(running.around(seen.append))
            bus.publish_many(numbers, range(turn * 20, turn * 20 + 20))
            with bus.worker():
                harness.wait_empty(numbers)
            most.append(running.most)

        assert most == [2, 6, 1]
        assert Counter(seen) == Counter(range(60))

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
    def test_a_consumer_holds_a_bounded_share_of_a_backlog_of_a_hundred_thousand(self, harness: Harness) -> None:
        numbers, bus, total, quick = (
            Queue(harness.unique("numbers"), int),
            harness.bus(),
            harness.backlog,
            harness.backlog * 3 // 10,
        )
        unblock = threading.Event()
        done: list[int] = []
        held: list[int] = []

        @bus.on(numbers, concurrency=4)
        def handle(number: int) -> None:
            if len(done) >= quick:  # so fast at first that a consumer may want to fetch far ahead
                unblock.wait(60.0)
            done.append(number)

        def in_hand_by_pulling() -> bool:
            depth = harness.depth(numbers)
            return (depth.inflight, depth.ready) == (10, total - 10)

        def worked() -> bool:
            held.append(harness.depth(numbers).inflight)
            return len(done) >= quick

        for first in range(0, total, 5000):
            bus.publish_many(numbers, range(first, first + 5000), timeout=60.0)
        with bus.subscription(numbers, prefetch=10) as messages:
            harness.take(messages, 10)
            harness.wait(in_hand_by_pulling)
        with bus.worker():
            harness.wait(worked, within=120.0)
            harness.wait(lambda: harness.depth(numbers).inflight)
            stuck = harness.depth(numbers)
            purged = harness.purge(numbers)  # what nobody has taken
            unblock.set()
            harness.wait_empty(numbers, within=60.0)

        assert max(*held, stuck.inflight) <= MOST_HELD
        assert stuck.ready >= total - quick - 2 * MOST_HELD
        assert len(set(done)) == len(done)
        assert 0 <= len(done) - (total - purged) <= harness.fetched_ahead

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

    @case("D.13")
    def test_one_group_name_on_two_topics_is_two_groups(self, harness: Harness) -> None:
        topics = [Topic(harness.unique("topic"), int, groups=["billing"]) for _ in range(2)]
        buses, seen = [harness.bus(), harness.bus()], [list[int](), list[int]()]
        for topic, bus, found in zip(topics, buses, seen, strict=True):
            bus.on(topic, group="billing")(found.append)
            bus.publish_many(topic, range(50))

        with buses[0].worker(), buses[1].worker():
            for topic in topics:
                harness.wait_empty(topic, "billing")

        assert [Counter(found) for found in seen] == [Counter(range(50))] * 2

    @case("D.13", needs=("order_by_key",))
    def test_a_consumer_that_wants_another_order_of_a_group_is_refused_before_it_takes_anything(
        self, harness: Harness
    ) -> None:
        orders = Topic(harness.unique("orders"), int, key=str)
        ordered, loose = harness.bus(), harness.bus()
        seen: dict[str, list[int]] = {"ordered": [], "loose": []}
        ordered.on(orders, group="billing", order="key")(seen["ordered"].append)
        loose.on(orders, group="billing", order="none")(seen["loose"].append)

        with ordered.worker():
            ordered.publish_many(orders, range(20))
            with pytest.raises(ConfigError, match="order"):
                start(loose)
            with pytest.raises(ConfigError, match="order"), loose.subscription(orders, group="billing", order="none"):
                pass
            harness.wait_empty(orders, "billing")

        assert (sorted(seen["ordered"]), seen["loose"]) == (list(range(20)), [])

    @case("D.14", needs=("order_by_key", "survives_process", "processes"))
    def test_where_all_messages_have_one_key_one_consumer_works_and_another_takes_over(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int, key=lambda _: "one"), harness.bus()
        active = harness.consumer("hold_a_key", numbers.name, url=lease_of(harness, 3.0))

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


class Running:
    """How many handlers run at once. Each of the first ones waits until as many run as are wanted."""

    def __init__(self, wanted: int) -> None:
        self.most = 0
        self._running = 0
        self._wanted = wanted
        self._changed = threading.Condition()

    def around(self, handler: Callable[[int], object]) -> Callable[[int], None]:
        """The handler, counted."""

        def handle(number: int) -> None:
            with self._changed:
                self._running += 1
                self.most = max(self.most, self._running)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self.most >= self._wanted, 20.0)
            handler(number)
            with self._changed:
                self._running -= 1

        return handle


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
