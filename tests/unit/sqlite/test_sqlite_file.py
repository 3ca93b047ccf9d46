"""Who makes the file and the files beside it, who may use them, and when another file may take its place."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_station import QUEUE, Station, ids, message, take

from mqkit._clock import SystemClock
from mqkit._url import Url
from mqkit.backends.base import Address, Declaration, Done
from mqkit.backends.sqlite import SqliteBackend
from mqkit.errors import Closed, MqkitError, NotFound, StoreDamaged


def backend_of(path: Path) -> SqliteBackend:
    return SqliteBackend(Url.parse(f"sqlite:///{path}"), SystemClock())


def test_an_admin_makes_a_file_only_to_declare(path: Path) -> None:
    admin = backend_of(path).admin()

    for look in (admin.describe, lambda: admin.browse(QUEUE, limit=1), lambda: admin.check([Declaration(QUEUE)])):
        with pytest.raises(NotFound, match=r"app\.db does not exist"):
            look()
    admin.delete(QUEUE)
    assert list(path.parent.iterdir()) == []

    admin.declare([Declaration(QUEUE)])
    assert [depth.address for depth in admin.describe()] == [QUEUE, QUEUE.dead_letters]
    admin.close()


def test_a_look_puts_no_tables_into_a_database_of_somebody_else(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs(x)")
    db.close()
    admin = backend_of(path).admin()

    with pytest.raises(NotFound, match="nothing of mqkit"):
        admin.describe()

    admin.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    db.close()


def test_a_publisher_is_not_refused_because_somebody_looked_at_the_same_time(path: Path) -> None:
    backend = backend_of(path)
    start = threading.Barrier(2)
    kinds: list[str] = []

    def look() -> None:
        start.wait()
        backend.admin().close()

    def publish() -> None:
        start.wait()
        try:
            backend.publisher().close()
            kinds.append("opened")
        except MqkitError as exc:
            kinds.append(type(exc).__name__)

    for _ in range(30):
        threads = [threading.Thread(target=look), threading.Thread(target=publish)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backend.close()
        for file in path.parent.iterdir():
            file.unlink()

    assert set(kinds) == {"opened"}


def test_a_deleted_file_is_not_made_anew_while_a_bus_knows_it(path: Path) -> None:
    station, other = Station(path), backend_of(path)
    station.publisher.close()
    station.admin.close()
    for file in path.parent.iterdir():
        file.unlink()

    for use in (station.backend.publisher, station.backend.admin, other.publisher, other.admin):
        with pytest.raises(StoreDamaged, match="deleted or renamed"):
            use()
    assert not path.exists()

    station.backend.close()
    other.publisher().close()
    assert path.exists()
    other.close()


def test_a_bus_that_is_gone_knows_no_file(path: Path) -> None:
    backend = backend_of(path)
    backend.publisher().close()
    del backend
    path.unlink()

    Station(path).close()


def test_a_replaced_file_is_refused_by_who_opens_it_next(path: Path) -> None:
    station = Station(path)
    station.publisher.close()
    station.admin.close()
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)

    with pytest.raises(StoreDamaged, match="replaced by another file"):
        station.backend.publisher()

    station.backend.close()
    Station(path).close()


def test_an_admin_that_cannot_open_leaves_no_thread(path: Path) -> None:
    before = set(threading.enumerate())
    station = Station(path)
    path.rename(path.with_suffix(".old"))

    for _ in range(3):
        with pytest.raises(StoreDamaged):
            station.backend.admin()
    station.close()

    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("mode", [0o666, 0o600])
def test_files_beside_the_database_have_its_permissions(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)

    Station(path).close()

    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "app.db": mode,
        "app.db-mq-door": mode,
        "app.db-mq-turn": mode,
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_who_may_write_the_database_may_use_the_lock_files_of_another_user() -> None:
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    path = folder / "app.db"
    Station(path).close()
    path.chmod(0o666)
    assert (folder / "app.db-mq-door").stat().st_mode & 0o777 == 0o644

    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(65534)
            os.setuid(65534)
            station = Station(path)
            station.declare(QUEUE)
            station.publish(QUEUE, "a")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0

    station = Station(path)
    assert station.depth(QUEUE) == (1, 0, 0)
    station.close()
    shutil.rmtree(folder)


def test_what_the_parent_had_open_is_closed_in_a_forked_child(open_station: Callable[..., Station]) -> None:
    station = open_station()
    receiver, listener = station.receiver(QUEUE), station.receiver(Address("broadcast", "ticks"))
    station.publish(QUEUE, "a")
    [held] = take(receiver, 1)
    out, into = os.pipe()

    child = os.fork()
    if child == 0:
        answers = []
        for use in (
            lambda: receiver.receive(0, 0.1),
            lambda: receiver.receive(1, 0.1),
            lambda: receiver.flush(0.1),
            lambda: receiver.settle([Done(held)]),
            lambda: listener.receive(1, 0.1),
            lambda: station.publisher.submit([message(QUEUE, "b")]),
            lambda: station.publisher.collect(0.1),
            lambda: station.publisher.abandon(),
            lambda: station.admin.describe(),
        ):
            try:
                use()
                answers.append("nothing")
            except BaseException as exc:
                answers.append(type(exc).__name__)
        for each in (receiver, listener, station.publisher):
            each.wake()
        station.close()
        os.write(into, " ".join(answers).encode())
        os._exit(0)
    os.close(into)
    with os.fdopen(out) as pipe:
        answers = pipe.read().split()
    os.waitpid(child, 0)

    assert answers == [Closed.__name__] * 9
    receiver.settle([Done(held)])
    assert not receiver.flush(5.0).refused
    station.publish(QUEUE, "c")
    assert ids(take(receiver, 1)) == ["c"]
