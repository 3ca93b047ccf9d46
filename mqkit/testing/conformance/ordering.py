"""E: order, of a single consumer and per key, over retries, many consumers and their deaths."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import pytest

from mqkit import DeadLetter, Delivery, Queue, Retry, Topic, fixed
from mqkit.backends.base import Outgoing
from mqkit.errors import ConfigError, PublishFailed, Unencodable
from mqkit.subscription import Subscription
from mqkit.testing import run_until_idle
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.faults import accept
from mqkit.testing.conformance.harness import Harness, Process
from mqkit.testing.conformance.programs_ef import Step, numbered, partitioned, steps


class TestOrdering:
    """E. Ordering."""

    @case("E.01", needs=("in_order",))
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
        bus, retry = harness.bus(), Retry(attempts=3, backoff=fixed(2.0))
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
        name, url, bus = harness.unique("steps"), lease_of(harness, 3.0), harness.bus()
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
            # One that failed, or whose process was killed, begins again. Nothing is passed over. What is settled comes
            # again after a kill only where the system had not carried that out yet, and then in its order.
            moves = [later - earlier for earlier, later in pairwise([-1, *numbers])]
            assert max(moves) <= 1, (key, numbers)
            back = sum(move < 0 for move in moves)
            assert back <= (0 if harness.capabilities.settles_at_once else 3), (key, numbers)

    @case("E.06", needs=("partition_of", "processes"))
    def test_one_key_goes_to_one_partition_whoever_publishes_it_and_to_the_one_other_clients_choose(
        self, harness: Harness
    ) -> None:
        partitions, bus = 6, harness.bus()
        queue = partitioned(harness.unique("steps"), partitions)
        bus.publish_many(queue, [Step(f"key {key}", 0) for key in range(30)])
        publisher = harness.consumer("publish_partitioned", queue.name, str(partitions), "30")
        publisher.wait_line("published")

        with bus.subscription(queue, prefetch=100) as messages:
            found = take_in_turn(harness, messages, 60)

        chosen: defaultdict[str, list[int]] = defaultdict(list)
        for delivery in found:
            chosen[delivery.payload.key].append(harness.partition_of(delivery.message))
        assert chosen == {key: [murmur2(key.encode()) % partitions] * 2 for key in chosen}
        assert len(chosen) == 30

    @case("E.07", needs=("partition_of", "to_partition"))
    def test_a_partition_can_be_chosen_and_one_that_is_not_there_is_refused(self, harness: Harness) -> None:
        bus = harness.bus()
        many, few = (Queue(harness.unique("numbers"), int, partitions=count) for count in (3, 2))

        for number in range(9):
            bus.publish(many, number, native=harness.to_partition(number % 3))
            bus.publish(few, number, native=harness.to_partition(number % 2))
        for queue, number in ((many, 3), (many, -1), (few, 2)):
            with pytest.raises(ConfigError, match=str(number)):
                bus.publish(queue, 99, native=harness.to_partition(number))

        for queue, count in ((many, 3), (few, 2)):
            with bus.subscription(queue, prefetch=20) as messages:
                found = harness.take(messages, 9)
                assert messages.receive(timeout=0.2) == []
            places = {delivery.payload: harness.partition_of(delivery.message) for delivery in found}
            assert places == {number: number % count for number in range(9)}

    @case("E.09", needs=("fifo_of", "order_by_key"))
    def test_key_and_id_are_the_systems_ordering_group_and_deduplication_id(self, harness: Harness) -> None:
        queue, bus = steps(harness.unique("steps")), harness.bus()

        for _ in range(2):  # the second time each is a duplicate
            for key, id in (("one", "a"), ("one", "b"), ("two", "c")):
                bus.publish(queue, Step(key, 0), id=id)
        with bus.subscription(queue, prefetch=10) as messages:
            found = [harness.fifo_of(delivery.message) for delivery in take_in_turn(harness, messages, 3)]
            more = messages.receive(timeout=0.5)

        groups = {id: group for group, id in found}
        assert set(groups) == {"a", "b", "c"}
        assert groups["a"] == groups["b"] != groups["c"]
        assert more == []

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

    @case("E.08", needs=("order_by_key",))
    def test_a_batch_of_which_some_are_refused_keeps_the_order_of_each_key_among_the_others(
        self, harness: Harness
    ) -> None:
        queue = steps(harness.unique("steps"))
        bus, faults = harness.faulty_bus()
        seen: list[Step] = []
        bus.on(queue, concurrency=4)(seen.append)
        sent = [Step(f"key {key}", number) for number in range(30) for key in range(5)]
        refused = {step for step in sent if step.number % 7 == 3}
        bodies = {b'"number":%d}' % step.number for step in refused}

        def refuse(message: Outgoing) -> PublishFailed | None:
            return PublishFailed("no") if any(message.body.endswith(body) for body in bodies) else None

        faults.publish = refuse
        outcomes = bus.publish_many(queue, sent)
        faults.publish = accept
        again = [step for step, outcome in zip(sent, outcomes, strict=True) if isinstance(outcome, PublishFailed)]
        bus.publish_many(queue, again)
        run_until_idle(bus, timeout=20.0 * harness.scale)

        late = [3, 10, 17, 24]
        assert set(again) == refused
        assert by_key(seen) == {f"key {key}": [n for n in range(30) if n not in late] + late for key in range(5)}

    @pytest.mark.slow
    @case("E.10", needs=("order_by_key", "survives_process", "processes", "lost"))
    def test_a_message_that_may_kill_its_process_waits_while_one_before_it_in_its_key_is_retried(
        self, harness: Harness
    ) -> None:
        name, url, bus = harness.unique("steps"), short_lease(harness), harness.bus()
        queue = steps(name)
        bus.publish_many(queue, [Step("one", number) for number in range(3)])
        for _ in range(3):  # one more than makes suspects: the last ones may have been on their way to the first
            process = harness.consumer("begin_and_wait", name, url=url)
            process.wait_line("one 0")
            process.kill()
            process.wait()
        seen: list[int] = []

        @bus.on(queue, concurrency=4, retry=Retry(attempts=3, crashes=2, backoff=fixed(0.5)))
        def handle(step: Step, delivery: Delivery[Step]) -> None:
            seen.append(step.number)
            fail_twice(step, delivery)

        with bus.worker():
            harness.wait(lambda: 2 in seen, within=30.0)

        assert seen == [0, 0, 0, 1, 2]

    @pytest.mark.slow
    @case("E.11", needs=("order_by_key", "survives_process", "processes", "lost"))
    def test_a_message_that_kills_its_process_dies_of_crashes_and_its_key_goes_on_in_order(
        self, harness: Harness
    ) -> None:
        name, bus, url = harness.unique("numbers"), harness.bus(), short_lease(harness)
        numbers = numbered(name)
        bus.publish_many(numbers, range(30))
        letters = bus.dead_letters(numbers)

        processes: list[Process] = []

        def dead_letters() -> Sequence[DeadLetter[int]]:
            """Each process that dies is replaced; F.26 counts them."""
            if not processes or processes[-1].ended:
                processes.append(harness.consumer("consume_keyed_poison", name, "13", url=url))
            return letters.list() if len(processes) > 3 else ()

        [dead] = harness.wait(dead_letters, within=60.0)

        def handled() -> list[int]:
            return [int(line) for process in processes for line in process.lines()]

        assert (dead.message.body, dead.reason.partition(":")[0]) == (b"13", "crashes")
        harness.wait(lambda: set(handled()) == set(range(30)) - {13}, within=20.0)
        for remainder in range(3):
            first_times = [number for number in dict.fromkeys(handled()) if number % 3 == remainder]
            assert first_times == sorted(first_times)


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
    return lease_of(harness, 1.0)


def lease_of(harness: Harness, seconds: float) -> str:
    """The URL with this lease, where there is one."""
    return harness.url if harness.capabilities.lease is None else harness.url_with(lease=seconds)


def lease_to_keep(harness: Harness) -> float:
    """Seconds of a lease that nobody may lose: on a slow system there is more time for keeping it."""
    return 2.0 * harness.scale


def take_in_turn(harness: Harness, messages: Subscription[Step], count: int) -> list[Delivery[Step]]:
    """So many deliveries, each acknowledged before the next of its key can come."""
    taken: list[Delivery[Step]] = []
    while len(taken) < count:
        [delivery] = harness.take(messages, 1)
        delivery.ack()
        taken.append(delivery)
    return taken


def murmur2(data: bytes) -> int:
    """
    The hash by which Kafka's own clients choose the partition of a key, before the modulo.

    Source: org.apache.kafka.common.utils.Utils.murmur2 and toPositive, Apache Kafka 4.
    """
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) & ~3
    for place in range(0, whole, 4):
        k = int.from_bytes(data[place : place + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := data[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF
