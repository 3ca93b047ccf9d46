"""The processes of a torture: publishers that end by themselves, and consumers that are replaced when they die."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.torture import programs

GRACE = 30.0  # seconds until a process that was asked to end must have ended


class Crowd:
    """
    Args:
        mutant: What spoils these processes, see `mutants`; "" for nothing.
    """

    def __init__(
        self, url: str, journal: Path, *, publishers: int, consumers: int, seconds: float, mutant: str
    ) -> None:
        self._url = url
        self._journal = journal
        self._until = time.monotonic() + seconds
        self._environment = {**os.environ, "MQKIT_MUTANT": mutant}
        self._log = journal.with_suffix(".log").open("ab")
        self._publishers = [self._publisher() for _ in range(publishers)]
        self._consumers = [self._spawn("consume") for _ in range(consumers)]

    def kill_consumer(self, chance: random.Random) -> None:
        place = chance.randrange(len(self._consumers))
        _end(self._consumers[place], signal.SIGKILL)
        self._consumers[place] = self._spawn("consume")

    def stop_consumer(self, chance: random.Random) -> None:
        """Politely, which gives back what it holds."""
        place = chance.randrange(len(self._consumers))
        _end(self._consumers[place], signal.SIGTERM)
        self._consumers[place] = self._spawn("consume")

    def kill_publisher(self, chance: random.Random) -> None:
        place = chance.randrange(len(self._publishers))
        _end(self._publishers[place], signal.SIGKILL)
        self._publishers[place] = self._publisher()

    def freeze_consumer(self, chance: random.Random, seconds: float) -> None:
        """It does nothing for so long, then goes on as if nothing had been."""
        frozen = chance.choice(self._consumers)
        frozen.send_signal(signal.SIGSTOP)
        thaw = threading.Timer(seconds, frozen.send_signal, [signal.SIGCONT])
        thaw.start()
        thaw.join()

    def wait_publishers(self, within: float) -> None:
        deadline = time.monotonic() + within
        for publisher in self._publishers:
            publisher.wait(max(0.1, deadline - time.monotonic()))

    def replace_dead(self) -> None:
        for place, consumer in enumerate(self._consumers):
            if consumer.poll() is not None:
                self._consumers[place] = self._spawn("consume")

    def look_on(self, seconds: float) -> None:
        """Let time pass."""
        threading.Event().wait(seconds)

    def close(self) -> None:
        for consumer in self._consumers:
            consumer.send_signal(signal.SIGTERM)
        for process in [*self._consumers, *self._publishers]:
            _end(process, signal.SIGTERM)
        self._log.close()

    def _publisher(self) -> subprocess.Popen[bytes]:
        return self._spawn("publish", f"{max(0.0, self._until - time.monotonic()):.3f}")

    def _spawn(self, program: str, *args: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", programs.__name__, program, self._url, str(self._journal), *args],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )


def _end(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise AssertionError(f"a process has not ended {GRACE:g} s after {number.name}") from None
