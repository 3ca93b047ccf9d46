"""Work for the commit thread of a file, and the transaction it is done in."""

from __future__ import annotations

import enum
import math
import sqlite3
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from mqkit.backends.sqlite.file import File
from mqkit.backends.sqlite.log import Appender
from mqkit.errors import MqkitError, PublishFailed, Unavailable

T = TypeVar("T")

PATIENCE = 30.0  # seconds a caller waits for a transaction before it gives up


class State(enum.Enum):
    QUEUED = 1
    RUNNING = 2
    WAITING = 3  # for messages; whatever the ticket had to write is committed
    DONE = 4
    WITHDRAWN = 5


class Transaction:
    """What tickets work on while they have the write lock."""

    def __init__(self, file: File, swept: dict[int, float]) -> None:
        self._file = file
        self._room: float | None = None
        self.publishes = False
        self.lacked = 0  # bytes that publishes would have needed above the reserve
        self.swept = swept  # when broadcasts were last tidied, by destination
        self.db = file.writer
        self.boot = file.clock.boot
        self.now = file.clock.now()
        self.appender = Appender(self.db, self.now)

    def touch(self, destination: int) -> None:
        """Readers of this destination may find something now."""
        self.appender.touched.add(destination)

    def take_room(self, size: int) -> None:
        """Raises `PublishFailed` where so many bytes of publishes, and no fewer after them, would go into the reserve."""
        self.publishes = True
        if self._room is None:
            self._room = self._file.room(self.db) if self._file.options.reserve else math.inf
        needed = room_for(size)
        self._room -= needed
        if self._room < 0:
            self._room = -math.inf
            self.lacked = max(self.lacked, needed)
            raise PublishFailed(f"{lacks_room(self._file.path)}; not published, free some space")


def room_for(size: int) -> int:
    """Bytes of disk for so many bytes of messages: in the write-ahead log, and later in the file."""
    return 2 * size


def lacks_room(path: str) -> str:
    return f"the disk of SQLite file {path} has less free space than the reserve"


class Ticket:
    """Work for the commit thread. Its owner waits on `changed`, which may be shared by many tickets."""

    claims = False  # does it wait for messages once it has written?

    def __init__(self, changed: threading.Condition, *, weight: int = 1, size: int = 0) -> None:
        self.changed = changed
        self.weight = weight
        self.size = size
        self.state = State.QUEUED
        self.written = False  # is its part of a transaction committed?
        self.failure: MqkitError | None = None  # why it alone came to nothing, though its transaction was committed
        self.error: MqkitError | None = None

    # -- the commit thread's side

    def urgent(self, db: sqlite3.Connection, now: float) -> bool:
        """Is there anything to write?"""
        del db, now
        return True

    def write(self, tx: Transaction) -> None:
        """Before the publishes of this transaction are in the log."""

    def begin(self) -> bool:
        """
        From now on it cannot be withdrawn, until it waits or is done.

        Again when the transaction came to nothing and is tried anew: whatever it noted in there is forgotten.
        """
        self.failure = None
        return self._enter(State.RUNNING)

    def finish(self, error: MqkitError | None = None) -> None:
        self.error = error or self.failure
        self.written = self.written or error is None
        self._enter(State.DONE)

    def wait_for_messages(self) -> bool:
        """Once nothing is left to write."""
        self.written = True
        return self._enter(State.WAITING)

    # -- the owner's side

    def withdraw(self) -> bool:
        """True: it has not begun and never will."""
        with self.changed:
            if self.state is State.QUEUED:
                self.state = State.WITHDRAWN
            return self.state is State.WITHDRAWN

    def _enter(self, state: State) -> bool:
        with self.changed:
            if self.state in (State.WITHDRAWN, State.DONE):
                return False
            self.state = state
            if state is not State.RUNNING:
                self.changed.notify_all()
            return True


class Claimant(Ticket):
    """A ticket that waits for messages of one destination."""

    claims = True
    destination: int
    again_at = float("inf")  # file's clock: when something becomes due, if nothing happens before

    def claim(self, tx: Transaction) -> bool:
        """After the publishes of this transaction are in the log; did it get anything?"""
        raise NotImplementedError


class Call(Ticket, Generic[T]):
    """A function to run inside a transaction; an error of mqkit undoes its work alone."""

    def __init__(self, work: Callable[[Transaction], T]) -> None:
        super().__init__(threading.Condition())
        self._work = work
        self.result: T

    def write(self, tx: Transaction) -> None:
        tx.db.execute("SAVEPOINT mq_call")
        try:
            self.result = self._work(tx)
        except MqkitError as exc:
            self.failure = exc
            tx.db.execute("ROLLBACK TO mq_call")
        tx.db.execute("RELEASE mq_call")

    def value(self, path: str) -> T:
        with self.changed:
            answered = self.changed.wait_for(lambda: self.state is State.DONE, PATIENCE)
        if not answered:
            self.withdraw()
            raise Unavailable(f"SQLite file {path} was not free to write within {PATIENCE:g} seconds")
        if self.error is not None:
            raise self.error
        return self.result
