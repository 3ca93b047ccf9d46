"""Whether another process of this machine is certainly dead, so that nobody has to wait for its leases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """
    A process as others can recognise it again. Without `namespace` the system cannot tell, and nobody may judge it.

    A process id means something in its own namespace only, and a start time is read through the reader's: containers
    that share a file by a volume see different processes under one number.
    """

    pid: int
    started: int | None  # clock ticks since boot
    namespace: str | None


class _Stat(NamedTuple):
    state: str
    threads: int
    started: int


def this_process() -> Process:
    pid = os.getpid()
    try:
        if os.readlink("/proc/self") != str(pid):  # it shows another namespace, where our numbers mean others
            return Process(pid, None, None)
        namespace = " ".join(str(os.stat(f"/proc/self/ns/{kind}").st_ino) for kind in ("pid", "time"))
        return Process(pid, _stat(pid).started, namespace)
    except (OSError, ValueError, IndexError):
        return Process(pid, None, None)


def is_dead(pid: int, started: int) -> bool:
    """
    Has this process of our own namespace certainly ended? False whenever there is a doubt.

    Asking by a signal cannot be fooled by a /proc that hides processes of other users.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is there, and not ours to ask
    try:
        found = _stat(pid)
    except (OSError, ValueError, IndexError):
        return False
    # A zombie whose other threads live is alive: only its first thread has ended.
    return found.started != started or (found.state in "ZX" and found.threads <= 1)


def _stat(pid: int) -> _Stat:
    """Source: proc(5), /proc/pid/stat; fields are counted behind the name, which may hold anything."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return _Stat(fields[0], int(fields[17]), int(fields[19]))
