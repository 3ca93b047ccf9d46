"""A parent that opens a bus and forks four children, which publish through it and end in four ways."""

from __future__ import annotations

import os
import signal
import sys

from mqkit import Bus, Queue

visits = Queue("visits", str)
EACH = 25


def main(url: str) -> None:
    bus = Bus(url)
    bus.publish(visits, "parent 0")
    children = []
    for child, end in enumerate((leave, exit_at_once, die, close)):
        if (pid := os.fork()) == 0:
            for number in range(EACH):
                bus.publish(visits, f"child {child} {number}")
            end(bus)
        children.append(pid)
        bus.publish(visits, f"parent {child + 1}")
    for pid in children:
        os.waitpid(pid, 0)
    bus.publish(visits, "parent 5")
    bus.close()


def leave(bus: Bus) -> None:
    sys.exit(0)


def exit_at_once(bus: Bus) -> None:
    os._exit(0)


def die(bus: Bus) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def close(bus: Bus) -> None:
    bus.close()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
