"""A backend found by entry point, with fewer capabilities than the embedded ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqkit import Broadcast, Bus, Delivery, Queue, Retry, Topic
from mqkit.errors import CapabilityMissing, ExtraMissing
from mqkit.native import MemoryTopic
from mqkit.testing import VirtualClock, run_until_idle

emails = Queue("emails", str)
receipts = Queue("receipts", str)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("third_party")))


@pytest.fixture
def bus() -> Bus:
    return Bus("plain://", clock=VirtualClock())


def ignore(payload: object) -> None: ...


def test_copies_are_confirmed_before_the_original_is_settled(bus: Bus):
    @bus.on(emails)
    def handle(text: str, delivery: Delivery[str]) -> None:
        delivery.publish(receipts, text.upper())
        delivery.publish(receipts, text.lower())

    seen: list[str] = []
    bus.on(receipts)(seen.append)
    bus.publish(emails, "Hello")
    run_until_idle(bus).raise_first()
    assert seen == ["HELLO", "hello"]


def test_a_dead_letter_is_confirmed_before_the_original_is_settled(bus: Bus):
    @bus.on(emails, retry=Retry(attempts=2))
    def handle(text: str) -> None:
        raise ValueError(text)

    bus.publish(emails, "x")
    assert [attempt.outcome for attempt in run_until_idle(bus)] == ["retry", "dead"]
    [letter] = bus.dead_letters(emails).list()
    assert (letter.attempts, letter.error_type) == (2, "ValueError")


@pytest.mark.parametrize(
    ("source", "options", "missing"),
    [
        (Queue("keyed", str, key=str), {}, 'order="key"'),
        (Queue("urgent", str, priorities=3), {}, "priorities"),
        (emails, {"promise": "exactly_once"}, "exactly_once"),
        (Broadcast("ticks", str), {}, "broadcast"),
        (Topic("t", str, native=MemoryTopic(retain=9.0)), {"group": "g", "start": "earliest"}, "earliest"),
    ],
)
def test_what_a_backend_cannot_do_is_refused_when_the_bus_starts(bus: Bus, source, options: dict, missing: str):
    bus.on(source, **options)(ignore)
    with pytest.raises(CapabilityMissing, match=missing) as caught:
        bus.open()
    assert "plain" in str(caught.value)


@pytest.mark.parametrize("options", [{"delay": 1.0}, {"ttl": 1.0}])
def test_what_a_backend_cannot_carry_is_refused_when_it_is_published(bus: Bus, options: dict):
    with pytest.raises(CapabilityMissing, match="plain"):
        bus.publish(emails, "x", **options)


def test_a_driver_that_is_not_installed_is_named_with_the_command():
    with pytest.raises(ExtraMissing, match=r"no_such_driver.*pip install 'plain-backend'$"):
        Bus("drawer://").open()


def test_the_extra_is_one_of_the_package_that_has_the_backend():
    with pytest.raises(ExtraMissing, match=r"no_such_driver.*pip install 'plain-backend\[wood\]'$"):
        Bus("cabinet://").open()
