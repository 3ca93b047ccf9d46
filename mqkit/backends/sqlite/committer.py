"""
The one thread per process and file that writes.

Publishers, receivers and admins of the process hand it tickets and wait; whatever has queued up while it waited for its turn
or for the disk goes into the next transaction together: settlements, then publishes, then claims.
"""

from __future__ import annotations

import enum
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mqkit.backends.sqlite import leases
from mqkit.backends.sqlite.errors import commit_unknown, in_doubt, translate
from mqkit.backends.sqlite.file import File, inherit, refuse_inherited
from mqkit.backends.sqlite.log import Appender
from mqkit.backends.sqlite.options import SqliteOptions
from mqkit.backends.sqlite.process import Process, this_process
from mqkit.backends.sqlite.wakeup import Wakeup
from mqkit.errors import Closed, ConfigError, MqkitError, Unavailable

T = TypeVar("T")

MOST_WORK, MOST_BYTES = 1000, 4 << 20  # in one transaction, give or take its last ticket
PATIENCE = 30.0  # seconds a caller waits for a transaction before it gives up
_FILE_CHECK, _CLOCK_STORED = 1.0, 10.0
_DEATHS_LOOKED_FOR = 1.0
_IDLE = 1.0  # seconds without work before the file is tidied


class State(enum.Enum):
    QUEUED = 1
    RUNNING = 2
    WAITING = 3  # for messages; whatever the ticket had to write is committed
    DONE = 4
    WITHDRAWN = 5


class Transaction:
    """What tickets work on while they have the write lock."""

    def __init__(self, file: File, swept: dict[int, float]) -> None:
        self.swept = swept  # when broadcasts were last tidied, by destination
        self.db = file.writer
        self.boot = file.clock.boot
        self.now = file.clock.now()
        self.appender = Appender(self.db, self.now)

    def touch(self, destination: int) -> None:
        """Readers of this destination may find something now."""
        self.appender.touched.add(destination)


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
        """From now on it cannot be withdrawn, until it waits or is done."""
        return self._enter(State.RUNNING)

    def finish(self, error: MqkitError | None = None) -> None:
        self.error = error or self.failure
        self.written = self.written or error is None
        self._enter(State.DONE)

    def wait_for_messages(self) -> bool:
        """Once nothing is left to write."""
        self.written = True
        return self._enter(State.WAITING)

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
            if not self.changed.wait_for(lambda: self.state is State.DONE, PATIENCE):
                if self.state is State.QUEUED:
                    self.state = State.WITHDRAWN
                raise Unavailable(f"SQLite file {path} was not free to write within {PATIENCE:g} seconds")
        if self.error is not None:
            raise self.error
        return self.result


class Committer:
    """Shared by everybody in the process who uses the file; got with `acquire`, ended by the last `release`."""

    def __init__(self, path: str, options: SqliteOptions) -> None:
        self.path = path
        self.options = options
        self.users = 1
        self.file: File
        self._process: Process
        self._failure: BaseException | None = None
        self._opened = threading.Event()
        self._inbox: deque[Ticket] = deque()
        self._standing: list[Claimant] = []
        self._asleep = False
        self._stopping = False
        self._clock_stored = self._room_asked = self._file_checked = 0.0
        self._room = True
        self._swept: dict[int, float] = {}
        self._version = 0
        self._deaths_looked_for = 0.0
        self._untidy = True
        self._worked_at = 0.0
        self._worked_version = -1
        self._thread = threading.Thread(target=self._run, name="mqkit-sqlite", daemon=True)
        self._thread.start()

    # -- any thread

    def wait_open(self) -> None:
        """Raises what opening the file raised, or `Unavailable` after a bounded wait."""
        if not self._opened.wait(PATIENCE):
            raise Unavailable(f"SQLite file {self.path} could not be opened within {PATIENCE:g} seconds")
        if self._failure is not None:
            raise self._failure

    def submit(self, ticket: Ticket) -> None:
        if self.file.inherited:
            refuse_inherited(self.path)
        if not self._thread.is_alive():
            raise Closed(f"the commit thread of SQLite file {self.path} has ended; open the bus again")
        self._inbox.append(ticket)
        if self._asleep:
            self._wakeup.ring()

    def run(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction and wait for its commit."""
        call = Call(work)
        self.submit(call)
        return call.value(self.path)

    def has_room(self) -> bool:
        """Is the disk's reserve untouched? Asked of the system at most once a second."""
        now = time.monotonic()
        if now - self._room_asked > 1.0:
            self._room, self._room_asked = self.file.has_room(), now
        return self._room

    def stop(self) -> None:
        if self._opened.is_set() and self._failure is None and self.file.inherited:
            return
        self._stopping = True
        if self._opened.is_set() and self._failure is None and self._thread.is_alive():
            self._wakeup.ring()
        self._thread.join(PATIENCE)

    def abandon(self) -> None:
        """In a forked child: leave everything to the parent."""
        if self._opened.is_set() and self._failure is None:
            self.file.abandon()
            self._wakeup.close()
        else:
            inherit(self.path)

    # -- the commit thread

    def _run(self) -> None:
        try:
            self._process = this_process()
            self.file = File(self.path, self.options)
            self._wakeup = Wakeup(self.path)
        except BaseException as exc:  # noqa: BLE001  raised again by `wait_open`
            self._failure = exc
            self._opened.set()
            return
        self._opened.set()
        try:
            while True:
                work = self._take()
                if work:
                    self._transact(work)
                elif self._stopping:
                    return
                elif not self._tidy():
                    self._sleep()
        finally:
            ended = Closed(f"the commit thread of SQLite file {self.path} has ended; open the bus again")
            self._fail([*self._standing, *self._drain()], ended)
            self._wakeup.close()
            self.file.close()

    def _take(self) -> list[Ticket]:
        """Everything that has something to write now. The others wait for messages."""
        db, now = self.file.writer, self.file.clock.now()
        work: list[Ticket] = []
        try:
            self._look_for_deaths()
            self._standing = [ticket for ticket in self._standing if ticket.state is State.WAITING]
            if self._standing and self._changed(now):
                work += [ticket for ticket in self._standing if ticket.urgent(db, now)]
            while self._inbox and not work:
                ticket = self._inbox.popleft()
                if ticket.urgent(db, now):
                    work.append(ticket)
                elif isinstance(ticket, Claimant) and ticket.wait_for_messages():
                    self._standing.append(ticket)
        except (sqlite3.Error, MqkitError) as exc:
            error = translate(exc, self.path) if isinstance(exc, sqlite3.Error) else exc
            self._fail([*self._standing, *self._drain()], error)
        return work

    def _look_for_deaths(self) -> None:
        """Once a second: owners of processes that are dead need not be waited for until their leases end."""
        if time.monotonic() - self._deaths_looked_for < _DEATHS_LOOKED_FOR:
            return
        self._deaths_looked_for = time.monotonic()
        if self._process.namespace is None:
            return
        if dead := leases.find_dead(self.file.writer, self.file.clock.boot, self._process):
            self._inbox.append(Call(lambda tx: tx.appender.touched.update(leases.expire(tx.db, dead))))

    def _changed(self, now: float) -> bool:
        """May somebody who waits find something: another process committed, or a time has come?"""
        if time.monotonic() - self._file_checked > _FILE_CHECK:
            self.file.check()
            self._file_checked = time.monotonic()
        [(version,)] = self.file.writer.execute("PRAGMA data_version").fetchall()
        if version != self._version:
            self._version = version
            self._wakeup.expect()
            return True
        return any(ticket.again_at <= now for ticket in self._standing)

    def _sleep(self) -> None:
        timeout = 60.0
        if self._standing:
            now = self.file.clock.now()
            timeout = min(_FILE_CHECK, max(0.0, min(ticket.again_at for ticket in self._standing) - now))
        if self._untidy:
            timeout = min(timeout, max(0.0, self._worked_at + _IDLE - time.monotonic()))
        self._asleep = True
        if not self._inbox and not self._stopping:
            self._wakeup.wait(timeout, watch=bool(self._standing))
        self._asleep = False

    def _tidy(self) -> bool:
        """When nobody has written for a while, in this process or another: one bounded step; is there more to do?"""
        now = time.monotonic()
        if not self._untidy or now - self._worked_at < _IDLE:
            return False
        try:
            [(version,)] = self.file.writer.execute("PRAGMA data_version").fetchall()
            if version != self._worked_version:
                self._worked_version, self._worked_at = version, now
                return False
            self.file.check()
            with self.file.turn:
                self._untidy = self.file.shrink()
        except (sqlite3.Error, MqkitError):
            self._untidy = False  # whoever works with the file next is told
        return self._untidy

    def _transact(self, found: list[Ticket]) -> None:
        """`found` and what has queued up meanwhile, in one transaction."""
        work: list[Ticket] = []
        waiting: list[Claimant] = []
        committing = False
        self._untidy, self._worked_at = True, time.monotonic()
        db = self.file.writer
        try:
            self.file.check()
            with self.file.turn:
                db.execute("BEGIN IMMEDIATE")
                work = self._begin(found)
                tx = Transaction(self.file, self._swept)
                for ticket in work:
                    ticket.write(tx)
                tx.appender.flush()
                claimants = [ticket for ticket in work if isinstance(ticket, Claimant)]
                for standing in self._standing:
                    if standing not in work and standing.destination in tx.appender.touched and standing.begin():
                        work.append(standing)
                        claimants.append(standing)
                waiting = [ticket for ticket in claimants if not ticket.claim(tx)]
                self._store_clock(tx)
                committing = True
                db.execute("COMMIT")
        except sqlite3.Error as exc:
            self._roll_back()
            if committing and in_doubt(exc):
                self.file.reopen()
                self._fail(work, commit_unknown(exc, self.path))
            else:
                self._fail(work or self._begin(found), translate(exc, self.path))
        except MqkitError as exc:
            self._roll_back()
            self._fail(work or self._begin(found), exc)
        except BaseException as exc:
            self._fail(work or found, Unavailable(f"SQLite file {self.path}: the commit thread failed ({exc!r})"))
            raise
        else:
            for ticket in work:
                if ticket not in waiting:
                    ticket.finish()
            for claimant in waiting:
                if claimant.wait_for_messages() and claimant not in self._standing:
                    self._standing.append(claimant)

    def _begin(self, found: list[Ticket]) -> list[Ticket]:
        work = [ticket for ticket in found if ticket.begin()]
        weight = sum(ticket.weight for ticket in work)
        size = sum(ticket.size for ticket in work)
        while self._inbox and weight < MOST_WORK and size < MOST_BYTES:
            ticket = self._inbox.popleft()
            if ticket.begin():
                work.append(ticket)
                weight += ticket.weight
                size += ticket.size
        return work

    def _store_clock(self, tx: Transaction) -> None:
        """Now and then, so that a boot into the past cannot take the file's time back."""
        if tx.now - self._clock_stored > _CLOCK_STORED:
            tx.db.execute("UPDATE mq_meta SET value = ? WHERE name = 'clock'", (tx.now,))
            self._clock_stored = tx.now

    def _roll_back(self) -> None:
        if self.file.writer.in_transaction:  # a full disk has rolled back already
            self.file.writer.execute("ROLLBACK")

    def _drain(self) -> list[Ticket]:
        tickets = []
        while self._inbox:
            tickets.append(self._inbox.popleft())
        return tickets

    def _fail(self, tickets: list[Any], error: MqkitError) -> None:
        for ticket in tickets:
            if ticket.begin():
                ticket.finish(error)
        self._standing = [ticket for ticket in self._standing if ticket.state is State.WAITING]


_committers: dict[str, Committer] = {}
_lock = threading.Lock()


def acquire(path: str, options: SqliteOptions) -> Committer:
    """The committer of a file, opened. Every `acquire` needs its `release`."""
    refuse_inherited(path)
    _guard_forks()
    with _lock:
        committer = _committers.get(path)
        if committer is not None and not committer._thread.is_alive():
            committer = None
        if committer is None:
            committer = _committers[path] = Committer(path, options)
        else:
            _refuse_other_options(committer, options)
            committer.users += 1
    try:
        committer.wait_open()
    except BaseException:
        release(committer)
        raise
    return committer


def release(committer: Committer) -> None:
    with _lock:
        committer.users -= 1
        if committer.users:
            return
        if _committers.get(committer.path) is committer:
            del _committers[committer.path]
    committer.stop()


_guarded = False


def _guard_forks() -> None:
    global _guarded
    if not _guarded:
        _guarded = True
        os.register_at_fork(after_in_child=_abandon_all)


def _abandon_all() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for committer in _committers.values():
        committer.abandon()
    _committers.clear()


def _refuse_other_options(committer: Committer, options: SqliteOptions) -> None:
    for name in ("synchronous", "reserve", "busy"):
        ours, theirs = getattr(options, name), getattr(committer.options, name)
        if ours != theirs:
            raise ConfigError(
                f"SQLite file {committer.path} is open in this process with {name}={theirs}; "
                f"give every bus of the file the same, not {name}={ours}"
            )
