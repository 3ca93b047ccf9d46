"""The Lua scripts, put together from the files in `lua/`; what each takes and answers is said there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).with_name("lua")

# Without this flag a server that is out of memory would refuse consumers too, and so never get any back.
_ALLOW_OOM = " flags=allow-oom"


@dataclass(frozen=True)
class Script:
    name: str
    text: bytes
    sha: str


def _script(name: str, *parts: str, flags: str = "") -> Script:
    texts = [(_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in ("clock", *parts, name)]
    text = (f"#!lua{flags}\n" + "\n".join(texts)).encode()
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


PUBLISH = _script("publish", "copy")
SETTLE = _script("settle", "fence", "copy", flags=_ALLOW_OOM)
TICK = _script("tick", "fence", "move_due", "dead_owners", flags=_ALLOW_OOM)
MINE = _script("mine", "fence", flags=_ALLOW_OOM)
LEAVE = _script("leave", "fence", flags=_ALLOW_OOM)
TRIM = _script("trim", flags=_ALLOW_OOM)
KEYED_TAKE = _script("keyed_take", "fence", "keyed", flags=_ALLOW_OOM)
KEYED_SETTLE = _script("keyed_settle", "fence", "copy", "keyed", flags=_ALLOW_OOM)
KEYED_REAP = _script("keyed_reap", "fence", "keyed", "dead_owners", flags=_ALLOW_OOM)
DECLARE = _script("declare", "move_due", flags=_ALLOW_OOM)
DEPTHS = _script("depths", flags=" flags=no-writes")
DECIDE = _script("decide", flags=_ALLOW_OOM)
WRITE = _script("write", flags=_ALLOW_OOM)
PURGE = _script("purge", "keyed", flags=_ALLOW_OOM)
REPLACE = _script("replace", "copy", "keyed", flags=_ALLOW_OOM)
MATERIALISE = _script("materialise", "keyed", flags=_ALLOW_OOM)

OF_PUBLISHERS = (PUBLISH, TRIM)
OF_RECEIVERS = (SETTLE, TICK, MINE, LEAVE, TRIM, WRITE)
OF_KEYED_RECEIVERS = (KEYED_SETTLE, KEYED_TAKE, KEYED_REAP, TICK, MINE, LEAVE, TRIM, WRITE)
