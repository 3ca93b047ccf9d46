"""The other process of the latency between processes: `python -m benchmarks.latency_consumer URL COUNT`."""

from __future__ import annotations

import json
import sys
import time

from benchmarks.memory import instants
from benchmarks.sample import wait_until
from mqkit import Bus

if __name__ == "__main__":
    url, count = sys.argv[1], int(sys.argv[2])
    taken: list[float] = []
    bus = Bus(url)

    @bus.on(instants)
    def note(sent: float) -> None:
        taken.append(time.monotonic() - sent)  # one clock for all processes of a machine

    with bus.worker():
        print("consuming", flush=True)
        wait_until(lambda: len(taken) == count)
    print(json.dumps(taken))
