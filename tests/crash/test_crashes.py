"""SIGKILL of real consumer processes at random moments; afterwards every message is counted."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mqkit import Bus, Queue
from mqkit.testing.brokers import RedisProcess
from tests.crash import programs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Consumers:
    """Some processes of one program; each that is killed, or dies, is replaced."""

    def __init__(self, program: str, url: str, log: Path, count: int) -> None:
        self._command = [sys.executable, "-m", programs.__name__, program, url, str(log)]
        self._processes = [self._spawn() for _ in range(count)]

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command)

    def kill_one(self, chance: random.Random) -> None:
        place = chance.randrange(len(self._processes))
        self._processes[place].kill()
        self._processes[place].wait()
        self._processes[place] = self._spawn()

    def watch(self, seconds: float) -> None:
        """Look on for so long, or until the first process ends."""
        with suppress(subprocess.TimeoutExpired):
            self._processes[0].wait(seconds)

    def replace_dead(self) -> int:
        dead = [place for place, process in enumerate(self._processes) if process.poll() is not None]
        for place in dead:
            self._processes[place] = self._spawn()
        return len(dead)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)


@contextmanager
def consuming(program: str, url: str, log: Path, count: int) -> Iterator[Consumers]:
    consumers = Consumers(program, url, log, count)
    try:
        yield consumers
    finally:
        consumers.stop()


def left(bus: Bus, *queues: Queue) -> int:
    names = {queue.name for queue in queues}
    admin = bus.link.backend.admin()
    try:
        return sum(
            depth.ready + depth.inflight + depth.delayed
            for depth in admin.describe()
            if depth.address.name in names and not depth.address.dead
        )
    finally:
        admin.close()


def kill_until_drained(
    consumers: Consumers, waiting: Callable[[], int], *, total: int, kills: int, within: float
) -> None:
    """Kill a random process at `kills` random points of the work, then wait until nothing is left."""
    chance = random.Random(7)
    points = sorted((chance.randrange(total // 10, total) for _ in range(kills)), reverse=True)
    deadline = time.monotonic() + within
    while (rest := waiting()) or points:
        assert time.monotonic() < deadline, f"{rest} messages left after {within} s, {len(points)} kills to come"
        assert rest or not points, (
            f"drained before the last {len(points)} kills: the work is too quick to prove anything"
        )
        if points and rest <= points[0]:
            points.pop(0)
            consumers.kill_one(chance)
        else:
            consumers.watch(0.005)


def publish(bus: Bus, queue: Queue, payloads: list) -> None:
    for payload in payloads:
        bus.publish_soon(queue, payload)
    bus.flush(timeout=120)


@pytest.fixture(params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/crash.db?lease=1.0"
    else:
        with RedisProcess(appendonly=True) as server:
            yield f"{server.url}?lease=1.0"


TOTAL, KILLS = 20_000, 20


def test_twenty_kills_lose_nothing_invent_nothing_and_mark_every_duplicate(url: str, tmp_path: Path):
    bus, log = Bus(url), tmp_path / "log"
    publish(bus, programs.numbers, list(range(TOTAL)))

    with consuming("count", url, log, 4) as consumers:
        kill_until_drained(consumers, lambda: left(bus, programs.numbers), total=TOTAL, kills=KILLS, within=300)

    handled = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
    times = Counter(number for number, _, _ in handled)
    redelivered = Counter(number for number, _, deliveries in handled if deliveries > 1)
    assert set(times) == set(range(TOTAL))
    assert [number for number, count in times.items() if redelivered[number] < count - 1] == []
    assert {attempt for _, attempt, _ in handled} == {1}


def test_exactly_once_into_a_second_queue_under_twenty_kills(url: str, tmp_path: Path):
    bus = Bus(url)
    publish(bus, programs.numbers, list(range(TOTAL)))

    with consuming("copy", url, tmp_path / "log", 4) as consumers:
        kill_until_drained(consumers, lambda: left(bus, programs.numbers), total=TOTAL, kills=KILLS, within=300)

    arrived: Counter[int] = Counter()
    with bus.subscription(programs.copies, prefetch=1000) as messages:
        # Until all are there, and then for as long as one too many may take.
        while taken := messages.receive(max=1000, timeout=60.0 if arrived.total() < TOTAL else 2.0):
            for delivery in taken:
                arrived[delivery.payload] += 1
                delivery.ack()
    assert arrived == Counter(range(TOTAL))


def test_keys_stay_in_order_over_three_processes_failures_and_ten_kills(url: str, tmp_path: Path):
    url = url.replace("lease=1.0", "lease=3.0")  # who lives must not lose what it is about to write down
    bus, log, keys, each = Bus(url), tmp_path / "log", 40, 50
    publish(
        bus, programs.keyed, [{"key": f"k{key}", "number": number} for number in range(each) for key in range(keys)]
    )

    with consuming("ordered", url, log, 3) as consumers:
        kill_until_drained(consumers, lambda: left(bus, programs.keyed), total=keys * each, kills=10, within=300)

    first_seen: dict[str, list[int]] = defaultdict(list)
    for line in log.read_text().splitlines():
        key, number, deliveries = line.split()
        if int(number) in first_seen[key]:
            assert int(number) == first_seen[key][-1], f"{key} went back to {number}, which had been settled"
            assert int(deliveries) > 1, f"{key} {number} came twice and the second was not marked"
        else:
            first_seen[key].append(int(number))
    assert all(numbers == list(range(each)) for numbers in first_seen.values())
    assert len(first_seen) == keys


def test_a_message_that_kills_its_process_ends_alone_among_the_dead_letters(url: str, tmp_path: Path):
    bus, log = Bus(url), tmp_path / "log"
    publish(bus, programs.numbers, list(range(200)))

    with consuming("poison", url, log, 2) as consumers:
        deadline, died = time.monotonic() + 120, 0
        while left(bus, programs.numbers):
            assert time.monotonic() < deadline
            died += consumers.replace_dead()
            consumers.watch(0.05)

    dead = bus.dead_letters(programs.numbers).list()
    assert [(letter.message.body, letter.reason.split(":")[0]) for letter in dead] == [(b"13", "crashes")]
    assert {int(line.split()[0]) for line in log.read_text().splitlines()} == set(range(200)) - {13}
    assert died >= 3
