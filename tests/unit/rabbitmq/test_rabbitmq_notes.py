"""What notes about a message say together."""

from __future__ import annotations

from mqkit.backends.rabbitmq.note import Note, Noted, together


def test_a_run_alone_counts_once_and_not_if_its_process_lived() -> None:
    notes = [
        Note("killer", alone="1"),
        Note("killer", alone="1"),  # written again, because its confirm was lost
        Note("killer", alone="2"),
        Note("lucky", alone="3"),
        Note("lucky", lived="3"),
        Note("lucky", alone="3"),
        Note("early", lived="4"),
    ]

    found = together(notes)

    assert {name: noted.solo for name, noted in found.items()} == {"killer": 2, "lucky": 0, "early": 0}


def test_the_last_failed_try_counts_in_whatever_order_they_come() -> None:
    notes = [Note("m", attempt=3, since=1.0, due=9.0), Note("m", attempt=2, since=1.0, due=5.0), Note("m", alone="1")]

    assert together(notes) == {"m": Noted(1, 3, 1.0, 9.0)}
