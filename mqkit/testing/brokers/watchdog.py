"""A small process that outlives this one by a moment and ends what it started, even after SIGKILL."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

# Reads "+ GROUP" and "- GROUP" lines. The pipe ends when the last process that can write to it is gone, orderly or not:
# then every group that is still noted is killed, and the command given as arguments runs.
# PR_SET_PDEATHSIG would not do: it follows the thread that started the child, and a fixture's thread ends early.
_PROGRAM = """
set -f
groups=
while read -r verb group; do
    kept=
    for one in $groups; do [ "$one" = "$group" ] || kept="$kept $one"; done
    groups=$kept
    [ "$verb" = - ] || groups="$groups $group"
done
for one in $groups; do kill -s KILL -- "-$one"; done
exec "$@"
"""


class Watchdog:
    """
    Kills process groups and runs one command as soon as this process ends, however it ends.

    Args:
        last: The command to run at the end, with its arguments; it gets no input and nobody reads its output.
    """

    def __init__(self, last: Sequence[str]) -> None:
        # A session of its own: Ctrl-C in the terminal must not end it before what it watches.
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _PROGRAM, "watchdog", *last],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def watch(self, group: int) -> None:
        """Note a process group to kill."""
        self._tell("+", group)

    def forget(self, group: int) -> None:
        """Its processes have been waited for; the number may soon belong to others."""
        self._tell("-", group)

    def close(self, timeout: float = 10.0) -> None:
        """Have it do its last work now; returns when that is done, or after `timeout` seconds without it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout)

    def _tell(self, verb: str, group: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {group}\n")
        self._process.stdin.flush()
