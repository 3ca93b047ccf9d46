"""Dead letters on a real server: one reader at a time, and no management API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from mqkit import Bus, DeadLetter, Queue, Topic
from mqkit.backends.base import Admin
from mqkit.errors import Unavailable
from tests.rabbit_server import RabbitHarness

pytestmark = pytest.mark.slow

numbers = Queue("numbers", int)
NOWHERE = "http://127.0.0.1:1"


def unmanaged(harness: RabbitHarness, patience: float = 30.0) -> str:
    return f"{harness.url.partition('?')[0]}?management={NOWHERE}&patience={patience}"


@pytest.fixture
def bus(harness: RabbitHarness) -> Bus:
    """Of 30 messages each has become a dead letter, and there is no management API."""
    bus = harness.bus(unmanaged(harness))
    bus.publish_many(numbers, range(30))
    with bus.subscription(numbers, prefetch=30) as messages:
        for delivery in harness.take(messages, 30):
            delivery.reject("for the test")
    return bus


@pytest.fixture
def other(bus: Bus) -> Iterator[Admin]:
    """Somebody else who looks at the dead letters, and holds them until closed."""
    admin = bus.link.backend.admin()
    assert len(admin.browse(numbers.address.dead_letters, limit=1)) == 1
    yield admin
    admin.close()


USES: list[Callable[[Bus], object]] = [
    lambda bus: len(bus.dead_letters(numbers).list()),
    lambda bus: bus.dead_letters(numbers).replay(),
    lambda bus: bus.dead_letters(numbers).purge(),
]


@pytest.mark.parametrize("use", USES, ids=["list", "replay", "purge"])
def test_who_comes_second_waits_until_the_first_lets_go(bus: Bus, other: Admin, use: Callable[[Bus], object]) -> None:
    letting_go = threading.Timer(0.7, other.close)
    letting_go.start()
    try:
        assert use(bus) == 30
    finally:
        letting_go.join()  # before it is closed once more


@pytest.mark.parametrize("use", USES, ids=["list", "replay", "purge"])
def test_who_waits_in_vain_is_told_and_never_that_there_are_none(
    harness: RabbitHarness, bus: Bus, other: Admin, use: Callable[[Bus], object]
) -> None:
    with pytest.raises(Unavailable, match="somebody else"):
        use(harness.bus(unmanaged(harness, patience=4.0)))
    other.close()

    assert len(bus.dead_letters(numbers).list()) == 30


def test_many_who_look_at_once_each_see_all(bus: Bus) -> None:
    seen: list[list[DeadLetter[int]]] = []
    threads = [threading.Thread(target=lambda: seen.append(bus.dead_letters(numbers).list())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)

    assert [[letter.message.body for letter in letters] for letters in seen] == [
        [str(number).encode() for number in range(30)]
    ] * 3


def test_a_replay_asks_no_management_api(bus: Bus) -> None:
    events = Topic("events", int, groups=["one"])
    assert bus.dead_letters(numbers).replay(to=events, where=lambda letter: int(letter.message.body) < 10) == 10
    assert bus.dead_letters(numbers).replay(where=lambda letter: int(letter.message.body) < 20) == 10
    assert bus.dead_letters(numbers).replay() == 10
