"""Publish, receive, settle, release and delay on one file."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from sqlite_station import QUEUE, Station, done, ids, message, take, take_now, until

from mqkit.backends.base import Address, Done, Release
from mqkit.envelope import Dead, Envelope
from mqkit.errors import LeaseLost, NotFound


def test_a_message_arrives_as_it_was_published(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    body = bytes(range(256))
    envelope = Envelope(type="Email", sent_at=1.5, dead=Dead("broken", attempts=2))
    station.outcomes(message(QUEUE, "a", body=body, key="k\0é", headers={"x y": "", "ü": '"\n'}, envelope=envelope))

    [got] = take(receiver, 1)

    assert (got.id, got.body, got.key, got.headers, got.envelope) == (
        "a", body, "k\0é", {"x y": "", "ü": '"\n'}, envelope,
    )  # fmt: skip
    assert (got.address, got.attempt, got.deliveries, got.lost, got.solo) == (QUEUE, 1, 1, 0, 0)


def test_an_empty_body_stays_empty(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", body=b"")

    assert take(receiver, 1)[0].body == b""


def test_messages_wait_in_publish_order_until_somebody_receives(station: Station) -> None:
    station.declare(QUEUE)
    names = [f"m{number}" for number in range(1234)]
    station.publish(QUEUE, *names)

    receiver = station.receiver(QUEUE)

    assert ids(take(receiver, 1234)) == names


def test_a_message_to_an_unknown_queue_fails_alone(station: Station) -> None:
    station.declare(QUEUE)

    outcomes = station.outcomes(message(QUEUE, "a"), message(Address("queue", "nowhere"), "b"), message(QUEUE, "c"))

    assert outcomes["a"] is None
    assert outcomes["c"] is None
    assert isinstance(outcomes["b"], NotFound)
    assert station.depth(QUEUE) == (2, 0, 0)


def test_a_settled_message_never_returns(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b")
    done(receiver, take(receiver, 2))

    assert receiver.receive(10, 0.05).deliveries == ()
    assert station.depth(QUEUE) == (0, 0, 0)


def test_settling_twice_is_refused_and_harmless(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    [delivery] = take(receiver, 1)
    done(receiver, [delivery])

    receiver.settle([Done(delivery)])
    turn = receiver.receive(1, 5.0)

    [(refused, error)] = turn.refused
    assert refused is delivery
    assert isinstance(error, LeaseLost)


def test_an_unharmed_message_comes_back_with_its_attempt(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    [first] = take(receiver, 1)

    receiver.settle([Release(first)])
    [second] = take(receiver, 1)

    assert (second.attempt, second.deliveries) == (1, 2)
    assert second.handle != first.handle


def test_a_failed_message_comes_back_later_with_its_next_attempt(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b")
    first, other = take(receiver, 2)
    since = receiver.now()

    receiver.settle([Release(first, after=0.2, attempt=2, since=since), Done(other)])
    [second] = take(receiver, 1)

    assert (second.id, second.attempt, second.since) == ("a", 2, since)
    assert receiver.now() - since >= 0.2


def test_the_first_attempt_may_be_given_by_the_envelope(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", envelope=Envelope(attempt=3))
    [first] = take(receiver, 1)

    receiver.settle([Release(first)])

    assert (first.attempt, take(receiver, 1)[0].attempt) == (3, 3)


def test_a_delayed_message_arrives_when_it_is_due(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    start = time.monotonic()
    station.publish(QUEUE, "late", delay=3.0)
    station.publish(QUEUE, "now")
    assert station.depth(QUEUE) == (1, 0, 1)

    got = take(receiver, 2)

    assert ids(got) == ["now", "late"]
    assert time.monotonic() - start >= 3.0


def test_who_waits_looks_again_when_the_next_message_is_due(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    before = receiver.now()
    station.publish(QUEUE, "late", delay=60.0)
    after = receiver.now()

    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(receiver.receive, 1, 30.0)
        until(station.blocked_receives)
        looks = station.next_look()
        receiver.wake()

    assert before + 60.0 <= looks <= after + 60.0
    assert waiting.result().deliveries == ()


def test_expiry_counts_from_the_moment_a_message_is_due(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    before = receiver.now()
    station.publish(QUEUE, "a", ttl=5.0, delay=0.1)
    station.publish(QUEUE, "b", ttl=5.0)
    after = receiver.now()

    got = {each.id: each.expires_at for each in take(receiver, 2)}

    assert before + 5.1 <= got["a"] <= after + 5.1
    assert before + 5.0 <= got["b"] <= after + 5.0


def test_an_expired_message_is_handed_out_all_the_same(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", ttl=-1.0)

    [got] = take(receiver, 1)

    assert got.expires_at is not None
    assert got.expires_at < receiver.now()


def test_copies_of_a_settlement_are_published_with_it(station: Station) -> None:
    other = Address("queue", "invoices")
    receiver, second = station.receiver(QUEUE), station.receiver(other)
    station.publish(QUEUE, "a")
    [delivery] = take(receiver, 1)

    receiver.settle([Done(delivery, [message(other, "copy"), message(QUEUE.dead_letters, "dead")])])
    assert not receiver.flush(5.0).refused

    assert ids(take(second, 1)) == ["copy"]
    assert station.depth(QUEUE.dead_letters) == (1, 0, 0)
    assert station.depth(QUEUE) == (0, 0, 0)


def test_a_copy_to_nowhere_leaves_its_delivery_in_hand(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b")
    first, second = take(receiver, 2)

    receiver.settle([Done(first, [message(Address("queue", "nowhere"), "copy")]), Done(second)])
    turn = receiver.flush(5.0)

    [(refused, error)] = turn.refused
    assert refused is first
    assert isinstance(error, NotFound)
    done(receiver, [first])
    assert station.depth(QUEUE) == (0, 0, 0)


def test_a_stale_settlement_publishes_no_copies(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    [delivery] = take(receiver, 1)
    station.admin.delete(QUEUE)
    station.declare(QUEUE)

    receiver.settle([Done(delivery, [message(QUEUE, "copy")])])
    turn = receiver.flush(5.0)

    assert [type(error) for _, error in turn.refused] == [LeaseLost]
    assert station.depth(QUEUE) == (0, 0, 0)


def test_closing_gives_back_what_is_in_hand(station: Station) -> None:
    first = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b")
    take(first, 2)

    first.close()

    got = take(station.receiver(QUEUE), 2)
    assert [(each.id, each.attempt, each.deliveries, each.lost) for each in got] == [("a", 1, 2, 0), ("b", 1, 2, 0)]


def test_a_wake_ends_a_blocked_receive_and_is_remembered(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    start = time.monotonic()
    blocked = threading.Thread(target=receiver.receive, args=(10, 30.0))
    blocked.start()
    until(station.blocked_receives)
    receiver.wake()
    blocked.join()
    receiver.wake()
    receiver.receive(0, 30.0)

    assert time.monotonic() - start < 5.0


def test_staged_work_does_not_wait_for_messages(station: Station) -> None:
    receiver, watcher = station.receiver(QUEUE), station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    [delivery] = take(receiver, 1)
    receiver.settle([Release(delivery)])
    blocked = threading.Thread(target=receiver.receive, args=(0, 0.0))
    blocked.start()

    assert ids(take(watcher, 1)) == ["a"]
    blocked.join()


def test_a_local_publish_wakes_a_blocked_receive(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    found: list[float] = []
    thread = threading.Thread(target=lambda: found.append(len(receiver.receive(1, 30.0).deliveries)))
    thread.start()
    until(station.blocked_receives)

    station.publish(QUEUE, "a")
    thread.join(5.0)

    assert found == [1]


def test_high_priority_goes_first_and_equals_keep_their_order(station: Station) -> None:
    station.declare(QUEUE, priorities=10)
    for id, priority in (("a", 0), ("b", 5), ("c", 9), ("d", 5), ("e", 0)):
        station.publish(QUEUE, id, priority=priority)

    receiver = station.receiver(QUEUE, priorities=10)
    got = take(receiver, 5)

    assert ids(got) == ["c", "b", "d", "a", "e"]
    assert [each.priority for each in got] == [9, 5, 5, 0, 0]
    receiver.settle([Release(each) for each in got])
    assert ids(take(receiver, 5)) == ["c", "b", "d", "a", "e"]


def test_delayed_priority_is_kept(station: Station) -> None:
    receiver = station.receiver(QUEUE, priorities=10)
    station.publish(QUEUE, "low", delay=60.0)
    station.publish(QUEUE, "high", delay=60.0, priority=3)
    assert take_now(receiver) == []

    station.pass_time(60.0)

    assert ids(take(receiver, 2)) == ["high", "low"]


def test_retries_do_not_starve_new_messages(station: Station) -> None:
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, *(f"old{number}" for number in range(20)))
    receiver.settle([Release(each) for each in take(receiver, 20)])
    station.publish(QUEUE, *(f"new{number}" for number in range(20)))

    got = ids(receiver.receive(10, 5.0).deliveries)

    assert got == ["old0", "old1", "old2", "old3", "old4", "new0", "new1", "new2", "new3", "new4"]
