"""Damaged, replaced, locked, read-only and full: each a typed error that names the file."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlite_programs
from sqlite_station import QUEUE, Station, done, ids, message, take

from mqkit.backends.base import Address, Done
from mqkit.backends.sqlite.errors import ERRORS, in_doubt, translate
from mqkit.errors import Closed, ConfigError, Denied, MqkitError, PublishFailed, StoreDamaged, Unavailable

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 40 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a file system can only be mounted by root: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"these are not the bytes you are looking for" * 100)

    with pytest.raises(StoreDamaged, match=r"app\.db is no SQLite database"):
        Station(path)


def test_a_newer_format_is_refused_with_the_next_step(open_station: Callable[..., Station], path: Path) -> None:
    open_station().close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE mq_meta SET value = 99 WHERE name = 'schema'")
    db.close()

    with pytest.raises(StoreDamaged, match="upgrade mqkit"):
        Station(path)


def test_a_broken_page_stops_publisher_and_receiver(open_station: Callable[..., Station], path: Path) -> None:
    station = open_station()
    station.declare(QUEUE)
    station.publish(QUEUE, *(f"m{number}" for number in range(500)), body=b"x" * 1000)
    station.close()
    with path.open("r+b") as file:  # nobody uses it now
        size = path.stat().st_size
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)

    with pytest.raises(StoreDamaged, match=r"app\.db is corrupt.*restore"):
        station = open_station()
        take(station.receiver(QUEUE), 500)


@pytest.mark.parametrize("fate", ["deleted or renamed", "replaced by another file"])
def test_a_file_taken_away_is_noticed_by_everybody(open_station: Callable[..., Station], path: Path, fate: str) -> None:
    station = open_station()
    receiver = station.receiver(QUEUE)
    errors: list[MqkitError] = []

    def receive() -> None:
        try:
            receiver.receive(1, 20.0)
        except MqkitError as exc:
            errors.append(exc)

    thread = threading.Thread(target=receive)
    thread.start()
    os.link(path, path.with_suffix(".old"))
    if fate.startswith("replaced"):  # in one step, for they look all the time
        shutil.copy(path, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    else:
        path.unlink()
    outcomes = station.outcomes(message(QUEUE, "a"))
    thread.join(10.0)

    assert isinstance(outcomes["a"], StoreDamaged)
    assert fate in str(outcomes["a"])
    assert [type(error) for error in errors] == [StoreDamaged]
    path.with_suffix(".old").replace(path)


def test_an_idle_consumer_notices_a_missing_file(open_station: Callable[..., Station], path: Path) -> None:
    receiver = open_station().receiver(QUEUE)
    path.rename(path.with_suffix(".old"))

    with pytest.raises(StoreDamaged, match="deleted or renamed"):
        receiver.receive(1, 5.0)
    path.with_suffix(".old").rename(path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder does not exist"):
        Station(tmp_path / "nowhere" / "app.db")


def test_a_read_only_file_system_is_refused_at_open(small_disk: Path) -> None:
    path = small_disk / "app.db"
    Station(path, reserve=0).close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    with pytest.raises(Denied, match=r"app\.db"):
        Station(path, reserve=0)


def test_a_read_only_file_is_refused_at_open(path: Path) -> None:
    Station(path).close()
    if subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        pytest.skip("the file system has no immutable files, and root ignores permissions")
    try:
        with pytest.raises(Denied, match=r"app\.db"):
            Station(path)
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


def test_a_full_disk_refuses_publishes_and_lets_consumers_drain_it(small_disk: Path) -> None:
    station = Station(small_disk / "app.db", reserve=16 << 20)
    receiver = station.receiver(QUEUE)
    (small_disk / "ballast").write_bytes(b"x" * (10 << 20))
    sent: list[str] = []
    refused: MqkitError | None = None
    for _ in range(100):  # 100 MB, more than the disk has
        names = [f"m{len(sent) + each}" for each in range(50)]
        outcomes = station.outcomes(*(message(QUEUE, name, body=b"x" * 20_000) for name in names))
        refused = outcomes[names[0]]
        sent += [name for name in names if outcomes[name] is None]
        if refused is not None:
            break
    station.look_again()

    assert isinstance(refused, PublishFailed)
    assert "reserve" in str(refused)
    assert station.publisher.blocked is not None
    got = take(receiver, len(sent))
    assert ids(got) == sent
    done(receiver, got)
    assert station.depth(QUEUE) == (0, 0, 0)
    station.close()


def test_a_disk_that_is_full_all_the_same_loses_nothing(small_disk: Path) -> None:
    station = Station(small_disk / "app.db", reserve=0)
    station.declare(QUEUE)
    sent: list[str] = []
    error: MqkitError | None = None
    while error is None:
        names = [f"m{len(sent) + each}" for each in range(20)]
        outcomes = station.outcomes(*(message(QUEUE, name, body=b"x" * 20_000) for name in names))
        error = outcomes[names[0]]
        sent += [name for name in names if outcomes[name] is None]

    assert type(error) is PublishFailed
    assert "the disk is full" in str(error)
    assert ids(station.admin.browse(QUEUE, limit=10_000)) == sent
    station.close()


def test_a_foreign_lock_fails_publishes_for_certain(open_station: Callable[..., Station], path: Path) -> None:
    station = open_station(busy=0.3)
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "before")
    held = take(receiver, 1)
    locked, release = SPAWN.Event(), SPAWN.Event()
    foreigner = SPAWN.Process(target=sqlite_programs.keep_locked, args=(str(path), locked, release))
    foreigner.start()
    assert locked.wait(20.0)

    outcomes = station.outcomes(message(QUEUE, "a"))
    with pytest.raises(Unavailable, match="locked by another program"):
        done(receiver, held)
    release.set()
    foreigner.join()

    assert type(outcomes["a"]) is PublishFailed
    assert not receiver.flush(5.0).refused  # what was staged stayed staged
    assert station.depth(QUEUE) == (0, 0, 0)


def test_a_flush_says_in_time_that_it_carried_nothing_out(open_station: Callable[..., Station], path: Path) -> None:
    station = open_station(busy=60.0)
    receiver = station.receiver(QUEUE)
    station.publish(QUEUE, "a")
    held = take(receiver, 1)
    foreign = sqlite3.connect(path, isolation_level=None)
    foreign.execute("BEGIN IMMEDIATE")

    receiver.settle([Done(held[0])])
    with pytest.raises(Unavailable, match="nothing was carried out"):
        receiver.flush(0.2)
    foreign.execute("ROLLBACK")
    foreign.close()

    assert not receiver.flush(10.0).refused
    assert station.depth(QUEUE) == (0, 0, 0)


def test_a_commit_that_breaks_off_is_unknown_and_loses_nothing(
    open_station: Callable[..., Station], path: Path
) -> None:
    answers = SPAWN.Queue()
    worker = SPAWN.Process(target=sqlite_programs.work_on_a_failing_disk, args=(str(path), answers))
    worker.start()
    published, settled = answers.get(timeout=60.0)
    worker.join()

    assert {published[f"during {number}"] for number in range(0, 20, 2)} == {"yes"}
    assert {published[f"during {number}"] for number in range(1, 20, 2)} == {"PublishUnknown"}
    assert set(settled.values()) == {"yes", "Lost"}
    left = Counter(ids(open_station().admin.browse(QUEUE, limit=1000)))
    sent = {id for id, answer in published.items() if answer == "yes"}
    gone = {id for id, answer in settled.items() if answer == "yes"}
    assert sent - set(left) - {id for id in settled if id not in gone} == gone
    assert set(left.values()) == {1}
    assert set(left) <= set(published) - gone
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()


def test_a_file_open_in_the_parent_is_refused_after_a_fork(open_station: Callable[..., Station], path: Path) -> None:
    station = open_station()
    station.declare(QUEUE)
    station.publish(QUEUE, "a")
    out, into = os.pipe()

    child = os.fork()
    if child == 0:
        complaints = []
        for use in (lambda: Station(path), lambda: station.publish(QUEUE, "b"), lambda: station.admin.purge(QUEUE)):
            try:
                use()
            except Closed as exc:
                complaints.append("spawn" in str(exc))
            except BaseException as exc:
                complaints.append(repr(exc))
        station.backend.after_fork()
        os.write(into, repr(complaints).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        assert pipe.read() == "[True, True, True]"
    os.waitpid(child, 0)

    assert ids(take(station.receiver(QUEUE), 1)) == ["a"]
    station.publish(QUEUE, "c")


def test_a_file_not_yet_open_may_be_used_after_a_fork(path: Path, open_station: Callable[..., Station]) -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            station = Station(path)
            station.declare(QUEUE)
            station.publish(QUEUE, "a")
            station.close()
            status = 0
        finally:
            os._exit(status)

    assert os.waitpid(child, 0)[1] == 0
    assert open_station().depth(QUEUE) == (1, 0, 0)


def test_nothing_is_left_running_after_the_last_close(path: Path) -> None:
    gc.collect()  # what earlier tests left to the collector would otherwise be closed in between
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        station = Station(path)
        station.receiver(QUEUE)
        station.receiver(Address("broadcast", "ticks"))
        station.close()

    assert threading.active_count() <= threads
    assert len(os.listdir("/proc/self/fd")) <= files  # what other tests left may end meanwhile
    assert descriptors_of(path) == []


def descriptors_of(path: Path) -> list[str]:
    """What this process has open of the database and the files beside it. A descriptor may go while it is looked at."""
    targets = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [target for target in targets if target.startswith(str(path))]


def test_a_close_that_meets_an_ended_commit_thread_is_harmless(path: Path) -> None:
    station = Station(path)
    committer = station.publisher._committer  # type: ignore[attr-defined]
    committer._stopping = True  # as when it sees this before it is rung
    committer._wakeup.ring()
    committer._thread.join(10.0)

    station.close()

    assert not committer._thread.is_alive()


def test_two_buses_of_a_process_must_agree_on_the_file(open_station: Callable[..., Station]) -> None:
    open_station(synchronous="full")

    with pytest.raises(ConfigError, match="synchronous=full"):
        open_station(synchronous="normal")


def test_every_primary_error_code_has_a_meaning() -> None:
    codes = {
        value
        for name, value in vars(sqlite3).items()
        if name.startswith("SQLITE_") and isinstance(value, int) and value < 100 and name.isupper()
    }
    failures = {code for code in codes if code in range(2, 27)}
    for code in failures:
        error = sqlite3.OperationalError("native words")
        error.sqlite_errorcode = code
        assert "/some/app.db" in str(translate(error, "/some/app.db"))
    assert set(ERRORS) <= failures


def test_only_an_io_error_leaves_a_commit_in_doubt() -> None:
    for code, doubt in ((sqlite3.SQLITE_IOERR_FSYNC, True), (sqlite3.SQLITE_FULL, False), (sqlite3.SQLITE_BUSY, False)):
        error = sqlite3.OperationalError()
        error.sqlite_errorcode = code
        assert in_doubt(error) is doubt
