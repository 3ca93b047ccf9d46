"""J: the system, or the way to it, breaks while it is used."""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from mqkit import Bus, Delivery, Queue, Retry, Topic, fixed
from mqkit.errors import MqkitError, PublishFailed, PublishUnknown, TimedOut, Unavailable
from mqkit.testing.chaos import FaultProxy
from mqkit.testing.conformance.cases import case
from mqkit.testing.conformance.harness import Harness

P = TypeVar("P")

PUBLISHERS = 100
EACH = 100  # messages of each publisher
ALWAYS = 1_000_000  # more connections than a client makes while a test runs
HOUR = 3600.0
PAUSE = 0.2  # seconds until a refused publish is tried again


def slow_close(proxy: FaultProxy) -> None:
    proxy.slow(delay=0.05)
    proxy.close_connections()


def resets(proxy: FaultProxy) -> None:
    proxy.reset_next(3)
    proxy.reset()


FAULTS: dict[str, Callable[[FaultProxy], None]] = {
    "latency": lambda proxy: proxy.slow(delay=0.05),
    "slow close": slow_close,
    "resets": resets,
}


class TestChaos:
    """J. Faults of the system."""

    @pytest.mark.slow
    @case("J.01", needs=("restart",))
    def test_two_restarts_under_a_hundred_publishers_lose_no_confirmed_message(self, harness: Harness) -> None:
        numbers, buses = Queue(harness.unique("numbers"), int), [harness.bus() for _ in range(10)]
        confirmed: list[int] = []
        ends, restarted = threading.Event(), threading.Event()

        def publish(publisher: int) -> None:
            for number in range(publisher * EACH, (publisher + 1) * EACH):
                if number % EACH == EACH * 3 // 4:
                    restarted.wait()  # so that none is done before
                while not ends.is_set() and not sent(buses[publisher % len(buses)], numbers, number):
                    ends.wait(PAUSE)
                confirmed.append(number)

        buses[0].declare(numbers)
        threads = [threading.Thread(target=publish, args=(publisher,)) for publisher in range(PUBLISHERS)]
        for thread in threads:
            thread.start()
        try:
            harness.wait(lambda: len(confirmed) >= PUBLISHERS * EACH // 4, within=150.0)
            harness.restart()
            harness.wait(lambda: len(confirmed) >= PUBLISHERS * EACH // 2, within=150.0)
            harness.restart()
            restarted.set()
            harness.wait(lambda: not any(thread.is_alive() for thread in threads), within=150.0)
        finally:
            ends.set()
            restarted.set()
            for thread in threads:
                thread.join(30.0)

        found: Counter[int] = Counter()
        with harness.bus().subscription(numbers, prefetch=1000) as messages:

            def drained() -> bool:
                for delivery in messages.receive(max=1000, timeout=1.0):
                    found[delivery.payload] += 1
                    delivery.ack()
                return len(found) == PUBLISHERS * EACH

            harness.wait(drained, within=150.0)
        assert sorted(confirmed) == sorted(found) == list(range(PUBLISHERS * EACH))

    @case("J.02", needs=("kill_connections",))
    def test_connections_that_the_system_ends_come_back_and_lose_nothing(self, harness: Harness) -> None:
        numbers, bus = Queue(harness.unique("numbers"), int), harness.bus()
        seen: Counter[int] = Counter()
        bus.on(numbers)(lambda number: seen.update([number]))

        with bus.worker():
            for first in (0, 100, 200):
                publish_all(harness, bus, numbers, range(first, first + 100))
                harness.wait(lambda: harness.kill_connections())  # what has just come back may not be there yet
            harness.wait(lambda: len(seen) == 300, within=30.0)
            harness.wait_empty(numbers, within=30.0)

        assert set(seen) == set(range(300))

    @pytest.mark.slow
    @case("J.03", needs=("endpoint",))
    def test_a_network_that_is_cut_for_five_seconds_loses_nothing(self, harness: Harness) -> None:
        with consuming(harness) as (proxy, bus, numbers, seen):
            publish_all(harness, bus, numbers, range(50))
            proxy.freeze()
            futures = [bus.publish_soon(numbers, number) for number in range(50, 100)]
            time.sleep(5.0)  # not waited for anything: it is how long the cut takes
            proxy.thaw()
            fates = dict(zip(range(50, 100), [future.exception(60.0) for future in futures], strict=True))
            publish_all(harness, bus, numbers, [number for number, fate in fates.items() if certain(fate)])
            publish_all(harness, bus, numbers, range(100, 150))
            may_be_lost = {number for number, fate in fates.items() if isinstance(fate, PublishUnknown)}
            harness.wait(lambda: set(seen) >= set(range(150)) - may_be_lost, within=60.0)
            harness.wait_empty(numbers, within=30.0)

        assert set(seen) <= set(range(150))

    @pytest.mark.slow
    @case("J.03", needs=("endpoint",))
    def test_a_connection_that_is_half_open_is_found_and_replaced(self, harness: Harness) -> None:
        with consuming(harness) as (proxy, bus, numbers, seen):
            publish_all(harness, bus, numbers, [1])
            harness.wait(lambda: seen[1])
            before = proxy.accepted

            proxy.freeze()
            harness.wait(lambda: not bus.health().ready, within=40.0)
            harness.wait(lambda: proxy.accepted > before, within=40.0)
            proxy.thaw()
            harness.wait(lambda: bus.health().ready, within=30.0)
            publish_all(harness, bus, numbers, [2])
            harness.wait(lambda: seen[2], within=30.0)

    @pytest.mark.parametrize("fault", FAULTS)
    @case("J.04", needs=("endpoint",))
    def test_latency_a_slow_close_and_resets_lose_nothing(self, harness: Harness, fault: str) -> None:
        with consuming(harness) as (proxy, bus, numbers, seen):
            for first in (0, 20, 40):
                publish_all(harness, bus, numbers, range(first, first + 20))
                FAULTS[fault](proxy)
            publish_all(harness, bus, numbers, range(60, 80))
            harness.wait(lambda: len(seen) == 80, within=60.0)
            harness.wait_empty(numbers, within=30.0)

        assert set(seen) == set(range(80))

    @case("J.05", needs=("endpoint",))
    def test_what_was_deleted_in_an_outage_is_declared_again(self, harness: Harness) -> None:
        orders = Topic(harness.unique("orders"), str, groups=["billing"])
        with consuming(harness) as (proxy, bus, numbers, seen):
            publish_all(harness, bus, numbers, [1])
            bus.publish(orders, "before")
            harness.wait(lambda: seen[1])
            harness.wait_empty(numbers)
            # Where a topic gives its groups what it has a moment later, that would be to the one that is declared again.
            harness.wait(lambda: harness.depth(orders, "billing").ready == 1)

            cut(harness, proxy)
            harness.delete(numbers)
            harness.delete(orders)
            proxy.reset_next(0)
            publish_all(harness, bus, numbers, [2])
            publish_all(harness, bus, orders, ["after"])
            harness.wait(lambda: seen[2], within=30.0)

        with harness.bus().subscription(orders, group="billing") as messages:
            assert [delivery.payload for delivery in harness.take(messages, 1)] == ["after"]

    @case("J.06", needs=("endpoint",))
    def test_who_subscribes_in_an_outage_gets_messages_once_it_is_over(self, harness: Harness) -> None:
        words = Queue(harness.unique("words"), str)
        harness.bus().publish(words, "kept")
        with harness.proxy() as proxy:
            bus = harness.bus(proxy.through(harness.url))
            bus.open()
            got: list[str] = []

            def subscribe() -> None:
                with bus.subscription(words) as messages:
                    got.extend(delivery.payload for delivery in harness.take(messages, 1, within=30.0))

            cut(harness, proxy)
            tried = proxy.accepted
            subscriber = threading.Thread(target=subscribe)
            subscriber.start()
            harness.wait(lambda: proxy.accepted > tried)
            meanwhile = list(got)
            proxy.reset_next(0)
            subscriber.join(60.0 * harness.scale)
            bus.close()

        assert (meanwhile, got) == ([], ["kept"])

    @case("J.07", needs=("endpoint",))
    def test_closing_while_it_reconnects_returns_in_its_time(self, harness: Harness) -> None:
        with consuming(harness) as (proxy, bus, numbers, seen):
            publish_all(harness, bus, numbers, [1])
            harness.wait(lambda: seen[1])
            cut(harness, proxy)
            tried = proxy.accepted
            future = bus.publish_soon(numbers, 2)
            harness.wait(lambda: proxy.accepted > tried, within=20.0)

            began = time.monotonic()
            with pytest.raises(MqkitError):  # which says what was not sent
                bus.close(timeout=2.0)
            took = time.monotonic() - began

        assert took < 2.0 + 3.0 * harness.scale
        assert isinstance(future.exception(0.0), MqkitError)

    @pytest.mark.slow
    @case("J.08", needs=("outage",))
    def test_what_could_not_be_opened_is_tried_anew_by_the_next_use(self, harness: Harness) -> None:
        words, bus, other = Queue(harness.unique("words"), str), harness.bus(), harness.bus()
        other.publish(words, "kept")
        uses: dict[str, Callable[[], object]] = {
            "publish": lambda: bus.publish(words, "mine", timeout=0.5),
            "pull": lambda: bus.subscription(words).receive(timeout=0.5),
            "look": lambda: list(bus.dead_letters(words).list()),
        }

        with harness.outage():
            failed = {name: refused(use) for name, use in uses.items()}
        bus.publish(words, "mine", timeout=30.0)
        with bus.subscription(words) as messages:
            got = {delivery.payload for delivery in harness.take(messages, 2, within=30.0)}
        dead = list(bus.dead_letters(words).list())

        assert failed == dict.fromkeys(uses, True)
        assert (got, dead) == ({"kept", "mine"}, [])

    @pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
    @case("J.13")
    def test_a_clock_that_jumps_by_an_hour_loses_and_repeats_nothing(
        self, harness: Harness, monkeypatch: pytest.MonkeyPatch, jump: float
    ) -> None:
        numbers, bus, wall_clock = Queue(harness.unique("numbers"), int), harness.bus(), time.time
        handled: Counter[int] = Counter()
        jumped = threading.Event()

        @bus.on(numbers, concurrency=4, retry=Retry(attempts=3, backoff=fixed(0.3)))
        def handle(number: int, delivery: Delivery[int]) -> None:
            handled[number] += 1
            if number == 0:  # it is in hand when the clock jumps
                jumped.wait(20.0)
            if number % 3 == 1 and delivery.attempt == 1:
                raise ConnectionError(number)

        with bus.worker():
            for number in range(20):
                bus.publish(numbers, number, delay=0.5 if number % 2 else 0.0)
            harness.wait(lambda: handled[0] == 1)
            monkeypatch.setattr(time, "time", lambda: wall_clock() + jump)
            jumped.set()
            for number in range(20, 40):
                bus.publish(numbers, number, delay=0.5 if number % 2 else 0.0, ttl=60.0)
            harness.wait(lambda: sum(handled.values()) >= 53)
            harness.wait_empty(numbers)

        assert handled == {number: 2 if number % 3 == 1 else 1 for number in range(40)}
        assert list(bus.dead_letters(numbers).list()) == []


@contextmanager
def consuming(harness: Harness) -> Iterator[tuple[FaultProxy, Bus, Queue[int], Counter[int]]]:
    """A bus that reaches the system through a proxy and consumes, and how often it has seen each number."""
    numbers = Queue(harness.unique("numbers"), int)
    with harness.proxy() as proxy:
        bus, seen = harness.bus(proxy.through(harness.url)), Counter[int]()
        bus.on(numbers)(lambda number: seen.update([number]))
        with bus.worker():
            yield proxy, bus, numbers, seen


def cut(harness: Harness, proxy: FaultProxy) -> None:
    """End what is open and what is made from now on, until `reset_next(0)`; returns when that is so."""
    proxy.reset_next(ALWAYS)
    proxy.reset()
    harness.wait(lambda: proxy.open_connections == 0)


def sent(bus: Bus, to: Queue[P] | Topic[P], payload: P) -> bool:
    """Whether the system has confirmed it."""
    try:
        bus.publish(to, payload, timeout=20.0)
    except (PublishFailed, TimedOut, Unavailable):
        return False
    return True


def publish_all(harness: Harness, bus: Bus, to: Queue[P] | Topic[P], payloads: Iterable[P]) -> None:
    """Each until it is confirmed; one whose fate is unknown is sent again, so that it may arrive twice."""
    for payload in payloads:
        harness.wait(functools.partial(sent, bus, to, payload), within=60.0)


def certain(fate: BaseException | None) -> bool:
    """Whether it was certainly not sent."""
    return fate is not None and not isinstance(fate, PublishUnknown)


def refused(use: Callable[[], object]) -> bool:
    try:
        use()
    except MqkitError:
        return True
    return False
