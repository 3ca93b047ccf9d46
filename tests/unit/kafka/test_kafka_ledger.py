"""What became of the records of a partition, over any number of holders."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from mqkit.backends.kafka.ledger import LIMIT, Held, Ledger, Past, past_of

NOTHING = Past([], [])


def handed_over(ledger: Ledger, *, given_back: bool = False) -> Ledger:
    return Ledger(ledger.base, past_of(ledger.base, ledger.metadata(given_back=given_back)))


def test_the_base_follows_what_is_done_without_a_gap() -> None:
    ledger = Ledger(10, NOTHING)
    for offset in (10, 12, 13):  # 11 is the mark of a transaction
        ledger.take(offset)
    ledger.settle(12)
    assert ledger.base == 10
    ledger.settle(10)
    assert ledger.base == 13
    ledger.settle(13)
    assert ledger.base == 14


def test_what_lies_behind_the_last_record_is_skipped_only_when_all_is_done() -> None:
    ledger = Ledger(0, NOTHING)
    ledger.take(0)
    assert not ledger.skip_to(5)
    ledger.settle(0)
    assert ledger.skip_to(5)
    assert not ledger.skip_to(5)
    assert ledger.base == 5


def test_the_next_holder_passes_over_what_was_done_and_counts_what_was_lost() -> None:
    ledger = Ledger(0, NOTHING)
    for offset in range(4):
        ledger.take(offset)
    ledger.settle(1)
    ledger.hold(2, Held(attempt=3, since=5.0, due=9.0, parked=True))

    later = handed_over(ledger)

    assert [later.take(offset) for offset in range(4)] == [
        Held(lost=1),
        None,
        Held(attempt=3, since=5.0, due=9.0, parked=True),
        Held(lost=1),
    ]


def test_a_holder_that_does_not_come_so_far_hands_on_what_he_was_told() -> None:
    ledger = Ledger(0, NOTHING)
    for offset in range(6):
        ledger.take(offset)
    ledger.settle(3)
    ledger.settle(5)

    short = handed_over(ledger)
    short.take(0)
    short.settle(0)
    last = handed_over(short)

    assert [last.take(offset) for offset in range(1, 6)] == [Held(lost=1), Held(lost=1), None, Held(lost=1), None]


def test_what_a_living_holder_gives_back_was_not_lost() -> None:
    ledger = Ledger(0, NOTHING)
    ledger.take(0)
    ledger.take(1)
    ledger.hold(1, Held(attempt=2))

    later = handed_over(ledger, given_back=True)

    assert later.take(0) == Held()
    assert later.take(1) == Held(attempt=2, parked=True)


@given(st.lists(st.tuples(st.sampled_from("ttttssgk"), st.integers(0, 100)), max_size=150), st.integers(1, 3))
def test_nothing_settled_comes_again_and_nothing_else_is_passed_over(
    steps: list[tuple[str, int]], distance: int
) -> None:
    """Taken, settled, handed over in good order or by a death, in any order."""
    ledger, settled, held = Ledger(0, NOTHING), set[int](), list[int]()
    at = 0
    for step, chosen in steps:
        if step == "t":
            if ledger.take(at) is None:
                assert at in settled
            else:
                assert at not in settled
                held.append(at)
            at += distance
        elif step == "s" and held:
            offset = held.pop(chosen % len(held))
            ledger.settle(offset)
            settled.add(offset)
        elif step in "gk":
            ledger = handed_over(ledger, given_back=step == "g")
            assert settled >= set(range(0, ledger.base, distance))
            held, at = [], -(-ledger.base // distance) * distance


def test_what_does_not_fit_leaves_out_what_is_done_first_and_never_an_attempt() -> None:
    ledger = Ledger(0, NOTHING)
    for offset in range(3000):
        ledger.take(offset)
    for offset in range(1, 3000, 2):
        ledger.settle(offset)
    ledger.hold(500, Held(attempt=7, since=1.0))

    metadata = ledger.metadata()

    assert len(metadata) <= LIMIT
    assert ledger.crowded
    assert past_of(0, metadata).of(500) == Held(attempt=7, since=1.0)


def test_when_all_that_is_tried_again_does_not_fit_nothing_more_is_taken_and_what_is_in_hand_is_marked() -> None:
    ledger, now = Ledger(0, NOTHING), time.time()
    for offset in range(1000):
        ledger.take(offset)
    for offset in range(300):
        ledger.hold(offset, Held(attempt=2, since=now + offset / 7, due=now + offset / 3, parked=True))
    for offset in range(300, 400, 2):
        ledger.settle(offset)

    later = handed_over(ledger)
    fates = [later.take(offset) for offset in range(1000)]

    assert ledger.crowded
    assert sum(fate is not None and fate.attempt == 2 for fate in fates) > 50
    assert [fates[offset] for offset in range(300, 400)] == [None, Held(lost=1)] * 50
    assert set(fates[400:]) == {Held(lost=1)}

    for offset in range(300):
        ledger.settle(offset)
    ledger.metadata()
    assert not ledger.crowded


def test_a_hundred_keys_of_a_partition_can_wait_for_their_next_attempts() -> None:
    ledger, now = Ledger(10**9, NOTHING), time.time()
    for offset in range(10**9, 10**9 + 100):
        ledger.take(offset)
        ledger.hold(offset, Held(attempt=9, since=now + offset % 77 / 7, due=now + offset % 99, parked=True))

    ledger.metadata()

    assert not ledger.crowded


def test_runs_are_written_briefly() -> None:
    ledger = Ledger(0, NOTHING)
    for offset in range(8):
        ledger.take(offset)
    for offset in (1, 3, 4, 7):
        ledger.settle(offset)
    ledger.hold(5, Held(lost=1))
    ledger.hold(6, Held(parked=True))  # is as if it had never been taken

    assert ledger.metadata() == "[[0,1,1],[0],[0,1,1],[0,2],[0,1,1,1],[1]]"


def test_a_time_that_nobody_lives_to_see_leaves_the_rest_readable() -> None:
    for due in (1e15, 1e308, float("inf")):
        ledger = Ledger(0, NOTHING)
        ledger.take(0)
        ledger.take(1)
        ledger.hold(0, Held(attempt=2, since=1.0, due=due, parked=True))
        ledger.settle(1)

        later = handed_over(ledger)

        held = later.take(0)
        assert held is not None
        assert held.due > 1e14
        assert later.take(1) is None


def test_times_are_handed_over_exactly_enough() -> None:
    ledger, since = Ledger(0, NOTHING), time.time()
    ledger.take(0)
    ledger.hold(0, Held(attempt=2, since=since, due=since + 1.0, parked=True))

    held = handed_over(ledger).take(0)

    assert held is not None
    assert since - 0.11 < held.since <= since + 0.001
    assert since + 0.999 <= held.due < since + 1.11


def test_what_somebody_else_wrote_is_nothing() -> None:
    deep = "[[0,0,1,0,0,0,0,0," + 1000 * "["
    strange = ("[[-1]]", "[[0,-1]]", "[[0,1,3]]", f"[[{10**40}]]", f"[[0,1,1,0,0,0,{10**400}]]")
    for text in ("", "hello", "{}", '{"a": 1}', "[1]", "\udcff", deep, *strange):
        assert past_of(3, text) == NOTHING
