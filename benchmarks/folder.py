"""Where the files of a side live: a folder of its own on a disk that has to be waited for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_DISK = ("tmpfs", "ramfs")


@contextmanager
def folder() -> Iterator[Path]:
    """
    In the system's place for temporary files, or in MQKIT_BENCH_DIR.

    Raises:
        ValueError: That place is in memory, where syncing is free and every durable figure wrong.
    """
    with tempfile.TemporaryDirectory(prefix="mqkit-bench-", dir=os.environ.get("MQKIT_BENCH_DIR")) as name:
        kind = _file_system(name)
        if kind in NO_DISK:
            raise ValueError(f"{name} is on {kind}, which has no disk to wait for; set MQKIT_BENCH_DIR")
        yield Path(name)


def _file_system(path: str) -> str:
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return ""
    mounts = [line.split()[1:3] for line in lines]
    above = [(point, kind) for point, kind in mounts if path.startswith(point.rstrip("/") + "/")]
    return max(above, key=lambda mount: len(mount[0]), default=("", ""))[1]
