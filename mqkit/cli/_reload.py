"""Which Python files changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "build", "dist"})

Snapshot = Mapping[str, int]


def snapshot(folder: Path) -> Snapshot:
    """Modification times of the .py files below a folder, hidden and installed ones left out."""
    found: dict[str, int] = {}
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
        for name in files:
            if name.endswith(".py"):
                path = os.path.join(place, name)
                try:
                    found[path] = os.stat(path).st_mtime_ns
                except OSError:  # gone between the two calls
                    continue
    return found


def changed(before: Snapshot, after: Snapshot) -> list[str]:
    """Paths that came, went or were written."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
