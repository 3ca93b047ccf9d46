"""The judge of the torture is judged first."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from tests.journal import Journal
from tests.torture.history import History, Verdict


def verdict(*lines: str, dead: tuple[str, ...] = ()) -> Verdict:
    return History.of(lines).verdict(dead)


def test_a_confirmed_message_that_nobody_handled_is_lost():
    assert verdict("try a", "ok a").lost == ["a"]


def test_a_confirmed_message_among_the_dead_letters_is_not_lost():
    assert verdict("try a", "ok a", dead=("a",)).clean


def test_a_message_whose_fate_was_unknown_may_be_gone_or_there():
    assert verdict("try a", "unknown a").clean
    assert verdict("try a", "unknown a", "done a 1", "receipt a").clean


def test_a_message_that_nobody_sent_is_invented():
    assert verdict("done a 1").invented == ["a"]


def test_a_message_that_was_refused_for_certain_must_not_be_handled():
    assert verdict("try a", "refused a", "done a 1").undead == ["a"]
    assert verdict("try a", "done a 1").undead == []
    assert verdict("try a", "refused a", "try a", "done a 1").undead == []


@pytest.mark.parametrize(
    ("lines", "doubled"),
    [
        (("try a", "ok a", "done a 1", "done a 1"), ["a"]),
        (("try a", "ok a", "done a 1", "done a 2"), []),
        (("try a", "ok a", "done a 2", "done a 3"), []),
        (("try a", "unknown a", "try a", "ok a", "done a 1", "done a 1"), []),
        (("try a", "unknown a", "try a", "ok a", "done a 1", "done a 1", "done a 1"), ["a"]),
        (("try a", "refused a", "try a", "ok a", "done a 1", "done a 1"), ["a"]),
    ],
)
def test_a_second_handling_must_be_a_redelivery_or_a_resend(lines: tuple[str, ...], doubled: list[str]):
    assert verdict(*lines).doubled == doubled


def test_what_a_handler_staged_must_arrive_and_nothing_else_may():
    assert verdict("try a", "ok a", "done a 1").unpaid == ["a"]
    assert verdict("try a", "ok a", "receipt a").unpaid == ["a"]


def test_no_line_of_a_journal_lies_on_two_pages(tmp_path: Path):
    journal = Journal(str(tmp_path / "journal"))
    for number in range(1000):
        journal.write("done", f"waiting-{number}", 1, 2**22)
    written = (tmp_path / "journal").read_bytes()
    ends = range(mmap.PAGESIZE, len(written), mmap.PAGESIZE)

    assert len(ends) > 10
    assert {written[end - 1 : end] for end in ends} == {b"\n"}
    assert len(History.of(written.decode().splitlines()).done) == 1000
    with pytest.raises(ValueError, match="limit is 64"):
        journal.write("try", "a" * 64)
