"""What one partition hands out, and when it hands out nothing more."""

from __future__ import annotations

import time
from collections.abc import Iterator

from kafka import TopicPartition

from mqkit.backends.base import Address, Received, Release
from mqkit.backends.kafka.desk import Desk, Handle
from mqkit.backends.kafka.record import Record, tail_of

ADDRESS = Address("queue", "orders")
MANY = 10_000


def desk_of(keys: Iterator[bytes]) -> Desk:
    desk = Desk(ADDRESS, 0, "", ordered=True)
    desk.arrived([Record("orders", 0, offset, 0, key, b"body", tail_of([])) for offset, key in enumerate(keys)])
    return desk


def taken(desk: Desk, room: int, now: float) -> list[Received]:
    found = desk.take(room, now, MANY)
    for received in found:
        received.handle = Handle(TopicPartition("orders", 0), received.native.offset)
    desk.ledger.metadata()  # as it is before handlers begin
    return found


def fail(desk: Desk, received: Received, now: float, after: float) -> None:
    """It comes again, as its second attempt."""
    desk.release(received.native.offset, Release(received, after, 2, now), now)


def test_one_key_that_waits_holds_up_none_but_its_own() -> None:
    now = time.time()
    desk = desk_of(b"%d" % (number % 2 and number) for number in range(2 * MANY))  # every other one is of key 0
    [first] = taken(desk, 1, now)
    fail(desk, first, now, 3600.0)

    while len(others := taken(desk, 100, now)) == 100 and desk.ledger.width < MANY:
        assert first.key not in {received.key for received in others}
        for received in others:
            desk.settle(received.native.offset)

    assert desk.ledger.width == MANY
    assert not desk.ledger.crowded


def test_where_no_more_can_be_written_down_what_waits_goes_first() -> None:
    now = time.time()
    desk = desk_of(b"%d" % number for number in range(1000))
    waiting = taken(desk, 200, now)
    for received in waiting:
        fail(desk, received, now, 60.0 + received.native.offset / 5)  # none shares its fate with its neighbour
    desk.ledger.metadata()

    assert taken(desk, 10, now) == []

    again = taken(desk, 1000, now + 101.0)
    assert [received.native.offset for received in again] == [received.native.offset for received in waiting]
    for received in again:
        desk.settle(received.native.offset)
    desk.ledger.metadata()
    assert len(taken(desk, 10, now + 101.0)) == 10
