"""What is noted about a message that stays unacknowledged, see `notes.py`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mqkit.envelope import Count, Moment


class Note(msgspec.Struct, omit_defaults=True):
    """
    Of one message, see `name_of` in `notes.py`. Having it twice is the same as having it once.

    `alone` and `lived` name one run of the message alone: that it begins, and that its process did not die of it. The rest is
    as in the `Release` of its last failed try.
    """

    id: str
    alone: str = ""
    lived: str = ""
    attempt: Count = 0
    since: Moment | None = None
    due: Moment = 0.0


class Noted(msgspec.Struct):
    """What all notes about one message say together. `solo`: how many of its runs alone have no known end."""

    solo: int = 0
    attempt: int = 0
    since: float | None = None
    due: float = 0.0


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Note).decode


def note_of(body: bytes) -> Note | None:
    """None: it is none."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None


def together(notes: Iterable[Note]) -> dict[str, Noted]:
    """By message."""
    found: dict[str, Noted] = {}
    begun: dict[str, set[str]] = {}
    lived: dict[str, set[str]] = {}
    for note in notes:
        noted = found.setdefault(note.id, Noted())
        if note.alone:
            begun.setdefault(note.id, set()).add(note.alone)
        if note.lived:
            lived.setdefault(note.id, set()).add(note.lived)
        if note.attempt > noted.attempt:
            noted.attempt, noted.since, noted.due = note.attempt, note.since, note.due
    for id, runs in begun.items():
        found[id].solo = len(runs - lived.get(id, set()))
    return found
