"""Lanes against a model: of one key nothing overtakes, and nothing is forgotten."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mqkit._lanes import Lanes
from mqkit.backends.base import Address, Received
from mqkit.envelope import Envelope
from mqkit.message import Delivery


def delivery(number: int, key: str | None) -> Delivery:
    received = Received(number, Address("queue", "q"), str(number), b"", key, {}, Envelope())
    return Delivery(received, None)  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.booleans()), max_size=40), st.randoms())
def test_messages_of_a_key_start_in_order_and_one_at_a_time(arrivals, random):
    lanes = Lanes()
    started: list[Delivery] = []
    given_back: list[int] = []
    running: list[Delivery] = []
    fails = {number: fail for number, (_, fail) in enumerate(arrivals)}
    for number, (key, _) in enumerate(arrivals):
        one = delivery(number, key)
        if lanes.admit(one):
            started.append(one)
            running.append(one)
        while running and random.random() < 0.4:
            _finish(lanes, running.pop(random.randrange(len(running))), fails, started, running, given_back)
    while running:
        _finish(lanes, running.pop(), fails, started, running, given_back)

    for key in ("a", "b"):
        order = [int(one.id) for one in started if one.key == key]
        assert order == sorted(order)
    assert sorted([int(one.id) for one in started] + given_back) == list(range(len(arrivals)))


def _finish(lanes, one, fails, started, running, given_back) -> None:
    assert one.key is None or sum(other.key == one.key for other in running) == 0
    ready, back = lanes.finished(one, again=fails[int(one.id)])
    given_back.extend(int(other.id) for other in back)
    for follower in ready:
        if lanes.admit(follower):
            started.append(follower)
            running.append(follower)


def test_followers_join_the_batch_that_holds_their_key_until_it_runs():
    lanes, batch = Lanes(), [object()]
    first, second, third = (delivery(number, "a") for number in range(3))
    assert lanes.admit(first, batch)
    assert lanes.admit(second, batch)
    assert not lanes.admit(third, [object()])
    assert lanes.finished(first, again=False) == ([], [])
    assert lanes.finished(second, again=True) == ([], [third])


def test_a_revoked_message_takes_its_followers_along():
    lanes = Lanes()
    head, follower = delivery(1, "a"), delivery(2, "a")
    lanes.admit(head)
    lanes.admit(follower)
    assert lanes.dropped(head) == [follower]
    assert lanes.admit(delivery(3, "a"))
