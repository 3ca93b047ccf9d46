"""What is noted about a message that stays unacknowledged, see `notes.py`."""

from __future__ import annotations

import msgspec


class Note(msgspec.Struct, omit_defaults=True):
    """Of one message, see `name_of` in `notes.py`. `alone`: how often it began to run alone; the rest as in the `Release` of its last failed try."""

    id: str
    alone: int = 0
    attempt: int = 0
    since: float | None = None
    due: float = 0.0


encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Note).decode
