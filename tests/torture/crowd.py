"""The processes of a torture. Who is killed or ends is replaced."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.torture import programs
from tests.torture.watch import Watch

GRACE = 60.0  # seconds until a process that was asked to end must have ended
STEP = 0.02  # seconds between two looks
AHEAD = 3000  # messages that publishers may be ahead of consumers: what waits at the end is to be handled, and proves nothing

Processes = list[subprocess.Popen[bytes]]


class Crowd:
    """
    Args:
        pace: Seconds between two messages of a publisher.
        mutant: What spoils these processes, see `mutants`; "" for nothing.
    """

    def __init__(self, url: str, journal: Path, *, publishers: int, consumers: int, pace: float, mutant: str) -> None:
        self._url = url
        self._journal = journal
        self._hold = journal.with_suffix(".hold")
        self._environment = {
            **os.environ,
            "MQKIT_MUTANT": mutant,
            "MQKIT_PACE": str(pace),
            "MQKIT_HOLD": str(self._hold),
        }
        self._log = journal.with_suffix(".log").open("ab")
        self.watch = Watch(journal)
        self._publishers = [self._spawn("publish") for _ in range(publishers)]
        self._consumers = [self._spawn("consume") for _ in range(consumers)]

    def kill_consumer(self, chance: random.Random) -> None:
        place = self._one_at_work(self._consumers, self.watch.consumers, chance)
        _end(self._consumers[place], signal.SIGKILL)
        self._consumers[place] = self._spawn("consume")

    def stop_consumer(self, chance: random.Random) -> None:
        """Politely, which gives back what it holds."""
        place = self._one_at_work(self._consumers, self.watch.consumers, chance)
        _end(self._consumers[place], signal.SIGTERM)
        self._consumers[place] = self._spawn("consume")

    def kill_publisher(self, chance: random.Random) -> None:
        place = self._one_at_work(self._publishers, self.watch.publishers, chance)
        _end(self._publishers[place], signal.SIGKILL)
        self._publishers[place] = self._spawn("publish")

    def freeze_consumer(self, chance: random.Random, seconds: float) -> None:
        """It does nothing for so long, then goes on as if nothing had been."""
        frozen = self._consumers[self._one_at_work(self._consumers, self.watch.consumers, chance)]
        frozen.send_signal(signal.SIGSTOP)
        self.look_on(seconds)
        frozen.send_signal(signal.SIGCONT)

    def stop_publishers(self) -> None:
        """They publish nothing new, and wait for the answers to what they sent."""
        for publisher in self._publishers:
            publisher.send_signal(signal.SIGTERM)
        for publisher in self._publishers:
            _end(publisher, signal.SIGTERM)

    def look_on(self, seconds: float) -> None:
        """Let time pass."""
        over = time.monotonic() + seconds
        while (left := over - time.monotonic()) > 0:
            self._look()
            time.sleep(min(STEP, left))

    def wait_for_work(self, more: int, within: float) -> None:
        """Until so many more messages are handled, and somebody publishes, or that was too long."""
        goal, deadline = self.watch.done + more, time.monotonic() + within
        while (self.watch.done < goal or not self.watch.publishers) and time.monotonic() < deadline:
            self.look_on(STEP)

    def wait_for_publishes(self, more: int, within: float) -> None:
        """Until so many more were begun, or that was too long."""
        self.watch.look()
        goal, deadline = self.watch.tried + more, time.monotonic() + within
        self._hold.unlink(missing_ok=True)
        while self.watch.tried < goal and time.monotonic() < deadline:
            time.sleep(STEP)
            self.watch.look()

    def close(self) -> None:
        for process in [*self._consumers, *self._publishers]:
            process.send_signal(signal.SIGTERM)
        for process in [*self._consumers, *self._publishers]:
            _end(process, signal.SIGTERM)
        self.watch.close()
        self._log.close()

    def _look(self) -> None:
        """As whoever runs such processes would: what is dead is started again, and what is ahead has to wait."""
        self.watch.look()
        for place, consumer in enumerate(self._consumers):
            if consumer.poll() is not None:
                self._consumers[place] = self._spawn("consume")
        if self.watch.tried - self.watch.done > AHEAD:
            self._hold.touch()
        else:
            self._hold.unlink(missing_ok=True)

    def _one_at_work(self, processes: Processes, seen: set[int], chance: random.Random) -> int:
        """Killing one that has not begun proves nothing."""
        at_work = [place for place, process in enumerate(processes) if process.pid in seen]
        return chance.choice(at_work or range(len(processes)))

    def _spawn(self, program: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", programs.__name__, program, self._url, str(self._journal)],
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
