"""When a partition counts as held up."""

from __future__ import annotations

import pytest
from kafka import TopicPartition

from mqkit.backends.kafka.standstill import LONGEST, Standstill

ONE, OTHER = TopicPartition("numbers", 0), TopicPartition("numbers", 1)


@pytest.fixture
def standstill() -> Standstill:
    return Standstill()


def test_it_is_told_of_once_in_that_time(standstill: Standstill) -> None:
    moments = [0.0, LONGEST, LONGEST + 1, LONGEST + 2, 2 * LONGEST + 1, 2 * LONGEST + 2]

    assert [standstill.look({ONE: 7}, now) for now in moments] == [[], [], [ONE], [], [], [ONE]]


def test_who_reads_on_does_not_stand_still(standstill: Standstill) -> None:
    assert standstill.look({ONE: 7, OTHER: 7}, 0.0) == []
    assert standstill.look({ONE: 8, OTHER: 7}, LONGEST) == []

    assert standstill.look({ONE: 8, OTHER: 7}, LONGEST + 1) == [OTHER]


def test_who_has_come_to_the_end_begins_anew(standstill: Standstill) -> None:
    assert standstill.look({ONE: 7}, 0.0) == []
    assert standstill.look({}, 1.0) == []

    assert standstill.look({ONE: 7}, LONGEST + 1) == []
