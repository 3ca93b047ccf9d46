"""Several processes on one file, and what is left when they are killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import sqlite_programs
from sqlite_programs import RESULTS
from sqlite_station import KEYED, QUEUE, Station, done, ids, message, take, take_now, until

from mqkit.backends.base import Address, Declaration, Done
from mqkit.backends.sqlite.process import _stat, is_dead, this_process
from mqkit.errors import LeaseLost

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Start a program of `sqlite_programs`; it is killed at the end of the test."""
    started: list[BaseProcess] = []

    def start_one(program: Callable[..., None], *args: Any) -> BaseProcess:
        process = SPAWN.Process(target=program, args=args)
        process.start()
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.join()


def test_what_a_killed_process_held_comes_back_as_lost(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station(lease=8.0)
    source = station.declare(QUEUE)
    station.publish(QUEUE, "a", "b", "c")
    holding = SPAWN.Event()
    holder = start(sqlite_programs.hold, str(path), source, 3, holding, {"lease": 8.0})
    assert holding.wait(20.0)
    receiver = station.receiver(QUEUE)
    assert take(receiver, 1, timeout=10.0) == []  # its holder lives and is served

    holder.kill()
    got = take(receiver, 3, timeout=20.0)

    assert [(each.id, each.attempt, each.deliveries, each.lost, each.solo) for each in got] == [
        ("a", 1, 2, 1, 0),
        ("b", 1, 2, 1, 0),
        ("c", 1, 2, 1, 0),
    ]


@pytest.mark.parametrize("buried", [True, False])  # or still a zombie, because nobody has asked how it ended
def test_what_killed_processes_held_comes_back_long_before_their_leases_end(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess], buried: bool
) -> None:
    station = open_station(lease=600.0)
    source = station.declare(QUEUE)
    station.publish(QUEUE, *"abcdef")
    held = [SPAWN.Event() for _ in range(3)]
    holders = [start(sqlite_programs.hold, str(path), source, 2, each, {"lease": 600.0}) for each in held]
    assert all(each.wait(20.0) for each in held)
    receiver = station.receiver(QUEUE)
    assert take(receiver, 1, timeout=2.5) == []  # they live

    for holder in holders[:2]:
        os.kill(holder.pid or 0, signal.SIGKILL)
        if buried:
            holder.join()
    got = take(receiver, 4, timeout=10.0)

    assert len(got) == 4
    assert {each.lost for each in got} == {1}
    assert station.depth(QUEUE) == (0, 6, 0)


def test_a_keyed_group_that_is_never_idle_takes_over_early_too(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station(lease=600.0)
    source = station.declare(KEYED, keyed=True, order="key")
    station.publish(KEYED, "a1", key="a")
    holding = SPAWN.Event()
    holder = start(sqlite_programs.hold, str(path), source, 1, holding, {"lease": 600.0})
    assert holding.wait(20.0)
    receiver = station.receiver(KEYED, keyed=True, order="key")
    station.publish(KEYED, "a2", key="a")

    holder.kill()
    handled: list[str] = []
    deadline = time.monotonic() + 20.0
    while handled[-2:] != ["a1", "a2"] and time.monotonic() < deadline:
        station.publish(KEYED, f"b{len(handled)}", key="b")
        got = receiver.receive(10, 1.0).deliveries
        handled += [each.id for each in got if each.key == "a"]
        done(receiver, got)

    assert handled == ["a1", "a2"]


@pytest.mark.parametrize("shown", [["--mount-proc"], []])
def test_a_living_process_of_another_container_keeps_its_lease(
    open_station: Callable[..., Station], path: Path, shown: list[str]
) -> None:
    if subprocess.run(["unshare", "-p", "-f", *shown, "true"], capture_output=True).returncode:
        pytest.skip(
            "only root may make a namespace of process ids, and mount /proc in it only where its root is a mount"
        )
    station = open_station()
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    code = f"import sqlite_programs; sqlite_programs.hold_until_killed({str(path)!r})"
    command = ["unshare", "--kill-child", "-p", "-f", *shown, sys.executable, "-c", code]
    holder = subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"

    got = take(receiver, 1, timeout=3.0)

    with sqlite3.connect(path) as db:
        pids = {pid for (pid,) in db.execute("SELECT pid FROM mq_owner").fetchall()}
    db.close()
    holder.kill()
    holder.communicate()
    assert min(pids) < 10  # in there numbers begin anew: ours would be another process
    assert got == []


def test_only_a_process_that_certainly_ended_is_dead() -> None:
    pid, started, namespace = this_process()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    assert started is not None
    assert namespace is not None
    assert not is_dead(pid, started)
    assert not is_dead(1, _stat(1).started)
    assert is_dead(pid, started - 1)  # another one had the number before
    assert is_dead(ended.pid, started)


def test_dying_alone_is_counted_apart(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station(lease=0.5)
    source = station.declare(QUEUE)
    station.publish(QUEUE, "a")
    holding = SPAWN.Event()
    holder = start(sqlite_programs.hold_alone, str(path), source, holding, {"lease": 0.5})
    assert holding.wait(20.0)

    holder.kill()
    [got] = take(station.receiver(QUEUE), 1)

    assert (got.lost, got.solo, got.attempt) == (1, 1, 1)


def test_a_sleeper_loses_what_somebody_else_took_over(open_station: Callable[..., Station], path: Path) -> None:
    station, other = open_station(lease=30.0), open_station(lease=30.0)
    sleeper = station.receiver(QUEUE)
    station.publish(QUEUE, "a", "b")
    a, b = take(sleeper, 2)
    second = other.receiver(QUEUE)
    station.pass_time(31.0)
    taken = take(second, 2)
    assert [each.lost for each in taken] == [1, 1]

    sleeper.settle([Done(a, [message(QUEUE, "copy")])])
    turn = sleeper.receive(5, 5.0)

    assert [(each.id, type(error)) for each, error in turn.refused] == [("a", LeaseLost)]
    assert list(turn.revoked) == [b]
    done(second, taken)
    assert station.depth(QUEUE) == (0, 0, 0)


def test_a_sleeper_whom_nobody_missed_keeps_what_it_holds(open_station: Callable[..., Station]) -> None:
    station = open_station(lease=0.3)
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    held = take(receiver, 1)
    station.pass_time(0.5)  # the process was stopped, say

    done(receiver, held)

    assert station.depth(QUEUE) == (0, 0, 0)


def test_a_full_window_keeps_its_leases(open_station: Callable[..., Station]) -> None:
    station = open_station(lease=60.0)
    receiver, rival = station.receiver(QUEUE), station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    held = take(receiver, 1)

    for _ in range(5):
        station.pass_time(30.0)
        receiver._renewed_at -= 30.0  # type: ignore[attr-defined]
        assert receiver.receive(0, 0.0).revoked in ((), [])
        assert rival.receive(1, 0.0).deliveries == ()

    done(receiver, held)


def test_ten_processes_may_open_a_new_file_at_once(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    go = SPAWN.Event()
    processes = [start(sqlite_programs.open_and_publish, str(path), number, go) for number in range(10)]

    go.set()
    for process in processes:
        process.join(60.0)

    assert [process.exitcode for process in processes] == [0] * 10
    assert open_station().depth(QUEUE) == (200, 0, 0)


def test_a_publish_reaches_another_idle_process_long_before_its_wait_ends(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station()
    receiver = station.receiver(QUEUE)
    tell, answers = SPAWN.Queue(), SPAWN.Queue()
    start(sqlite_programs.publish_when_told, str(path), tell, answers)
    answers.get(timeout=30.0)

    waits = []
    for number in range(30):
        tell.put(f"m{number}")
        [got] = receiver.receive(1, 10.0).deliveries
        waits.append(time.monotonic() - answers.get(timeout=10.0))
        done(receiver, [got])
        receiver.receive(1, 0.03)  # idle for a while

    assert max(waits) < 5.0


def test_whatever_was_published_survives_the_publisher(
    open_station: Callable[..., Station], path: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station()
    receiver = station.receiver(QUEUE)
    noted = tmp_path / "noted"
    publishers = [start(sqlite_programs.publish_until_killed, str(path), str(noted)) for _ in range(2)]
    got = ids(take(receiver, 200, timeout=30.0))

    for publisher in publishers:
        publisher.kill()
        publisher.join()
    while more := take_now(receiver):
        got += ids(more)

    assert len(got) == len(set(got))
    promised = noted.read_text().split()
    assert len(promised) > 100
    assert set(promised) <= set(got)


def kill_consumers(
    station: Station,
    start: Callable[..., BaseProcess],
    path: Path,
    source: Declaration,
    *,
    failures: float,
    kills: int,
    count: int,
) -> list[Any]:
    """Four consumers move `count` messages to the results while now and then one dies; what arrived there."""
    lease = {"lease": 0.5}
    station.declare(RESULTS)
    numbers = iter(range(1000))

    def consumer() -> BaseProcess:
        return start(sqlite_programs.consume, str(path), source, failures, next(numbers), lease)

    chance = random.Random(7)
    consumers = [consumer() for _ in range(4)]
    for round_ in range(kills):
        goal = count * (round_ + 1) // (kills + 2)
        until(lambda goal=goal: station.depth(RESULTS)[0] >= goal)
        victim = chance.randrange(4)
        os.kill(consumers[victim].pid or 0, signal.SIGKILL)
        consumers[victim].join()
        consumers[victim] = consumer()
    results = station.receiver(RESULTS)
    got = take(results, count, timeout=60.0)
    got += take_now(results)
    return got


@pytest.mark.slow
def test_killed_consumers_lose_nothing_and_invent_nothing(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station(lease=0.5)
    source = station.declare(QUEUE)
    names = [f"m{number}" for number in range(5000)]
    station.publish(QUEUE, *names)

    got = kill_consumers(station, start, path, source, failures=0.1, kills=8, count=5000)

    assert sorted(ids(got)) == sorted(names)
    assert station.depth(QUEUE) == (0, 0, 0)


@pytest.mark.slow
def test_killed_consumers_of_one_group_leave_the_other_everything(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess]
) -> None:
    station = open_station(lease=0.5)
    topic = Address("topic", "events")
    audit = station.receiver(topic._replace(group="audit"))
    source = station.declare(topic._replace(group="billing"))
    names = [f"m{number}" for number in range(3000)]
    station.publish(topic, *names)

    got = kill_consumers(station, start, path, source, failures=0.1, kills=6, count=3000)

    assert sorted(ids(got)) == sorted(names)
    assert station.depth(source.address) == (0, 0, 0)
    mine = take(audit, 3000)
    assert ids(mine) == names
    done(audit, mine)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM mq_message WHERE message_id LIKE 'm%' AND grp IS NULL").fetchone() == (
            len(got),  # the results, in the hands of this test
        )
    db.close()


@pytest.mark.slow
@pytest.mark.parametrize("keys", [20, 500])
def test_killed_consumers_keep_the_order_of_every_key(
    open_station: Callable[..., Station], path: Path, start: Callable[..., BaseProcess], keys: int
) -> None:
    station = open_station(lease=0.5)
    source = station.declare(KEYED, keyed=True, order="key")
    messages = [message(KEYED, str(number), key=f"k{number % keys}") for number in range(5000)]
    assert not any(station.outcomes(*messages).values())

    got = kill_consumers(station, start, path, source, failures=0.1, kills=8, count=5000)

    by_key: dict[str, list[int]] = {}
    for each in got:
        by_key.setdefault(each.key, []).append(int(each.id))
    assert sorted(int(each.id) for each in got) == list(range(5000))
    assert [key for key, numbers in by_key.items() if numbers != sorted(numbers)] == []
    assert station.depth(KEYED) == (0, 0, 0)
