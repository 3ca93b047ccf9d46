"""The conformance suite on sqlite://, one file per case."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mqkit.destinations import Destination
from mqkit.native import SqliteTopic, SqliteTransaction
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness

pytestmark = pytest.mark.timeout(600)

# What a program without mqkit does; the same statements are in docs/backends/sqlite.md.
INSERT = """INSERT INTO mq_later(destination, due, message_id, envelope, body)
            SELECT id, 0, ?, ?, CAST(? AS BLOB) FROM mq_destination WHERE name = ?"""
SELECT = """SELECT body FROM mq_message m JOIN mq_destination d ON m.id >> 40 = d.id WHERE d.name = ? ORDER BY m.id"""
# Source: sqlite.org/walformat.html, "WAL Locks": eight locks, from byte 120 of the shared-memory file.
HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as shared:
    fcntl.lockf(shared, fcntl.LOCK_EX, 8, 120)
    print("held", flush=True)
    sys.stdin.read()
"""


class SqliteHarness(Harness):
    """A foreign client is the sqlite3 module on the same file."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}", scale=2.0)
        self._path = path

    @property
    def system(self) -> str:
        return f"sqlite {sqlite3.sqlite_version}"

    def retention(self, seconds: float) -> object:
        return SqliteTopic(retain=seconds)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        with self._connected() as db:
            db.execute(INSERT, ("of a foreigner", json.dumps([{}, headers]), body, name_of(destination)))

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        with self._connected() as db:
            return [body for (body,) in db.execute(SELECT, (name_of(destination),))]

    def find_native(self, destination: Destination[Any], native: Any) -> bytes:
        with self._connected() as db:
            [(body,)] = db.execute("SELECT body FROM mq_message WHERE id = ?", (native,))
            return bytes(body)

    @contextmanager
    def transaction(self) -> Iterator[object]:
        with self._connected() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteTransaction(db)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Another process holds every lock of the write-ahead log, so that nobody can read or write the file."""
        command = [sys.executable, "-c", HOLD, f"{self._path}-shm"]
        with self._connected() as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # there is a log as long as this is open
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "held\n"
                yield

    def denied_url(self) -> str:
        """Where the file should be stands what nobody may open as one."""
        blocked = self._path.with_name("denied.db")
        blocked.mkdir()
        return f"sqlite:///{blocked}"

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, isolation_level=None, timeout=20.0)) as db:
            yield db


def name_of(destination: Destination[Any]) -> str:
    return f"{destination.kind}/{destination.name}"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = SqliteHarness(tmp_path / "mqkit.db")
    yield harness
    harness.close()
