"""Partitions are shared fairly, and as few as possible move."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from mqkit.backends.kafka.assignor import balanced

names = st.sampled_from("abcdefgh")


@given(
    st.integers(0, 30),
    st.lists(names, min_size=1, max_size=6, unique=True),
    st.dictionaries(st.integers(0, 40), names, max_size=30),
)
def test_each_partition_has_one_member_and_nobody_has_two_more_than_another(
    count: int, members: list[str], owners: dict[int, str]
) -> None:
    found = balanced(range(count), owners, members)
    shares = Counter(found.values())

    assert sorted(found) == list(range(count))
    assert max(shares[member] for member in members) - min(shares[member] for member in members) <= 1


@given(st.integers(1, 30), st.lists(names, min_size=1, max_size=6, unique=True))
def test_a_fair_state_stays_and_a_member_that_comes_takes_only_its_share(count: int, members: list[str]) -> None:
    before = balanced(range(count), {}, members)
    assert balanced(range(count), before, members) == before

    after = balanced(range(count), before, [*members, "new"])
    moved = {number for number in range(count) if after[number] != before[number]}
    assert {after[number] for number in moved} <= {"new"}


@given(st.integers(1, 30), st.lists(names, min_size=2, max_size=6, unique=True))
def test_only_what_a_member_that_leaves_had_is_moved(count: int, members: list[str]) -> None:
    before = balanced(range(count), {}, members)
    after = balanced(range(count), before, members[1:])
    assert {before[number] for number in range(count) if after[number] != before[number]} <= {members[0]}
