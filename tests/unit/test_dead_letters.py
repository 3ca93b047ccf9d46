"""Looking at dead letters, replaying and purging them, on both embedded backends."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqkit import Bus, Delivery, Queue, Retry, fixed
from mqkit.errors import ConfigError
from mqkit.testing import VirtualClock, run_until_idle

numbers, approved = Queue("numbers", int), Queue("approved", int)


@pytest.fixture(params=["memory", "sqlite"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Bus:
    return Bus("memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/dead.db")


def kill(bus: Bus, *payloads: int, **options: str) -> None:
    """Publish these and let each become a dead letter."""
    for payload in payloads:
        bus.publish(numbers, payload, **options)  # type: ignore[arg-type]
    with bus.subscription(numbers, prefetch=1000) as messages:
        for _ in payloads:
            [delivery] = messages.receive(timeout=5)
            delivery.reject(f"number {delivery.payload}")


def pulled(bus: Bus, queue: Queue[int], count: int) -> list[Delivery[int]]:
    with bus.subscription(queue, prefetch=1000) as messages:
        taken: list[Delivery[int]] = []
        while len(taken) < count and (more := messages.receive(max=count, timeout=5)):
            taken += more
        for delivery in taken:
            delivery.ack()
        return taken


def test_more_than_a_page_is_replayed_in_order_and_attempts_begin_anew(bus: Bus):
    kill(bus, *range(250))
    assert bus.dead_letters(numbers).replay() == 250
    assert [(delivery.payload, delivery.attempt) for delivery in pulled(bus, numbers, 250)] == [
        (n, 1) for n in range(250)
    ]
    assert bus.dead_letters(numbers).list() == []


def test_a_filter_takes_its_own_and_leaves_the_others_in_order(bus: Bus):
    kill(bus, *range(250))
    letters = bus.dead_letters(numbers)
    assert letters.replay(where=lambda letter: int(letter.message.body) % 2 == 0) == 125
    assert [int(letter.message.body) for letter in letters.list(limit=1000)] == list(range(1, 250, 2))
    assert letters.purge(where=lambda letter: int(letter.message.body) < 100) == 50
    assert letters.purge() == 75


def test_one_is_found_replayed_elsewhere_and_counted_once(bus: Bus):
    kill(bus, 1, 2, 3)
    letters = bus.dead_letters(numbers)
    wanted = letters.list()[1]
    assert letters.replay([wanted.id], to=approved) == 1
    [delivery] = pulled(bus, approved, 1)
    assert (delivery.id, delivery.payload) == (wanted.id, 2)
    assert letters.get(wanted.id) is None
    assert letters.replay([wanted.id]) == 0


def test_two_dead_letters_of_one_id_are_one_message(bus: Bus):
    kill(bus, 7, 7, id="same")
    assert bus.dead_letters(numbers).replay(["same"]) == 1
    assert len(pulled(bus, numbers, 1)) == 1
    assert bus.dead_letters(numbers).list() == []


def test_a_slow_replay_keeps_its_rate_and_a_senseless_one_is_refused(bus: Bus):
    kill(bus, 1, 2)
    assert bus.dead_letters(numbers).replay(rate=1000.0) == 2
    with pytest.raises(ConfigError, match="rate=0"):
        bus.dead_letters(numbers).replay(rate=0)


def test_what_dies_again_while_it_is_replayed_waits_for_the_next_call(bus: Bus):
    kill(bus, *range(5))
    bus.on(numbers, retry=Retry(attempts=1))(_fail)
    with bus.worker():
        assert bus.dead_letters(numbers).replay(rate=500.0) == 5


def test_a_keyed_message_that_is_retried_lets_a_virtual_clock_go_on():
    bus = Bus("memory://", clock=VirtualClock())
    keyed = Queue("keyed", int, key=lambda _: "one key")
    seen: list[int] = []

    @bus.on(keyed, retry=Retry(backoff=fixed(60.0)))
    def handle(number: int, delivery: Delivery[int]) -> None:
        if delivery.attempt == 1:
            raise ConnectionError
        seen.append(number)

    bus.publish_many(keyed, [1, 2, 3])
    run_until_idle(bus)
    assert seen == [1, 2, 3]


def _fail(number: int) -> None:
    raise ValueError(number)


@pytest.mark.parametrize(("levels", "order"), [(None, [2, 3, 1]), (2, [3, 2, 1]), (0, [1, 3, 2])])
def test_a_replay_keeps_the_priority_as_far_as_the_queue_has_levels(bus: Bus, levels: int | None, order: list[int]):
    urgent = Queue("urgent", int, priorities=3)
    elsewhere = None if levels is None else Queue("elsewhere", int, priorities=levels)
    for number, priority in ((1, 0), (2, 2), (3, 1)):
        bus.publish(urgent, number, priority=priority)
    with bus.subscription(urgent) as messages:
        taken: list[Delivery[int]] = []
        while len(taken) < 3:
            taken += messages.receive(max=3, timeout=5)
        for delivery in reversed(taken):
            delivery.reject("the least urgent first")

    bus.dead_letters(urgent).replay(to=elsewhere)

    assert [delivery.payload for delivery in pulled(bus, elsewhere or urgent, 3)] == order
