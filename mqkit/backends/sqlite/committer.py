"""
The one thread per process and file that writes.

Publishers, receivers and admins of the process hand it tickets and wait; whatever has queued up while it waited for its turn
or for the disk goes into the next transaction together: settlements, then publishes, then claims.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from mqkit.backends.sqlite import leases
from mqkit.backends.sqlite.errors import commit_unknown, in_doubt, translate_any
from mqkit.backends.sqlite.file import File, Identity, inherit
from mqkit.backends.sqlite.options import SqliteOptions
from mqkit.backends.sqlite.process import Process, this_process
from mqkit.backends.sqlite.ticket import PATIENCE, Call, Claimant, State, Ticket, Transaction, lacks_room, room_for
from mqkit.backends.sqlite.wakeup import Wakeup
from mqkit.errors import (
    Closed,
    Denied,
    MqkitError,
    PublishFailed,
    StoreDamaged,
    Unavailable,
    Unencodable,
)

T = TypeVar("T")

MOST_WORK, MOST_BYTES = 1000, 4 << 20  # in one transaction, give or take its last ticket
_FILE_CHECK, _CLOCK_STORED = 1.0, 10.0
_TROUBLE_CHECK = 1.0  # seconds between two looks whether what went wrong is over
_DEATHS_LOOKED_FOR = 1.0
_IDLE = 1.0  # seconds without work before the file is tidied


class Committer:
    """Shared by everybody in the process who uses the file; got and given back by `shared`."""

    def __init__(self, path: str, options: SqliteOptions, *, create: bool, expected: Identity | None) -> None:
        self.path = path
        self.options = options
        self.users = 1
        self.file: File
        self.damaged: StoreDamaged | None = None  # from now on nothing of this file is used
        self.creates = create
        self._expected = expected
        self._process: Process
        self._failure: MqkitError | None = None
        self._opened = threading.Event()
        self._inbox: deque[Ticket] = deque()
        self._standing: list[Claimant] = []
        self._asleep = False
        self._stopping = False
        self._ended = False
        self._clock_stored = self._file_checked = 0.0
        self._trouble: MqkitError | None = None  # what the last transaction failed of
        self._trouble_checked = 0.0
        self._wanted = 0  # bytes of disk it failed for want of
        self._broken = False  # the writer has to be opened anew
        self._seen: str | None = None  # what a look at file and disk showed
        self._looked_at = 0.0
        self._swept: dict[int, float] = {}
        self._version = 0
        self._deaths_looked_for = 0.0
        self._untidy = True
        self._worked_at = 0.0
        self._worked_version = -1
        self._thread = threading.Thread(target=self._run, name="mqkit-sqlite", daemon=True)
        self._thread.start()

    # -- any thread

    @property
    def usable(self) -> bool:
        """It is open, or about to be."""
        return self._failure is None and not self._ended and self._thread.is_alive()

    def wait_open(self) -> None:
        """Raises what opening the file raised, or `Unavailable` after a bounded wait."""
        if not self._opened.wait(PATIENCE):
            raise Unavailable(f"SQLite file {self.path} could not be opened within {PATIENCE:g} seconds")
        if self._failure is not None:
            raise self._failure
        if self.damaged is not None:
            raise self.damaged

    def submit(self, ticket: Ticket) -> None:
        self.file.refuse_inherited()
        if self.damaged is not None:
            raise self.damaged
        self._inbox.append(ticket)
        if self._asleep:
            self._wakeup.ring()
        if self._ended:  # perhaps after the thread had answered whatever was there
            self._fail_all(self._has_ended())

    def run(self, work: Callable[[Transaction], T]) -> T:
        """Run `work` in a transaction and wait for its commit."""
        call = Call(work)
        self.submit(call)
        return call.value(self.path)

    def trouble(self) -> str | None:
        """Why nothing can be published now: what the last transaction failed of, or a look at most once a second shows."""
        now = time.monotonic()
        if now - self._looked_at > _TROUBLE_CHECK:
            self._seen, self._looked_at = self._look(), now
        failure = self.damaged or self._trouble
        return self._seen if failure is None else str(failure)

    def condemn(self, error: MqkitError) -> None:
        """Where the file turned out to be damaged, by whomever: nobody in this process works with it any more."""
        if isinstance(error, StoreDamaged) and self.damaged is None:
            self.damaged = error

    def stop(self) -> None:
        opened = self._opened.is_set() and self._failure is None
        if opened and self.file.inherited:
            return
        self._stopping = True
        if opened:
            self._wakeup.ring()
        self._thread.join(PATIENCE)

    def abandon(self) -> None:
        """In a forked child: leave everything to the parent."""
        if self._opened.is_set() and self._failure is None:
            self.file.abandon()
            self._wakeup.abandon()
        else:
            inherit(self.path)

    def _look(self) -> str | None:
        try:
            self.file.check()
        except MqkitError as exc:
            return str(exc)
        return lacks_room(self.path) if self.file.free_space() < self.options.reserve else None

    def _has_ended(self) -> Closed:
        return Closed(f"the commit thread of SQLite file {self.path} has ended; open the bus again")

    # -- the commit thread

    def _run(self) -> None:
        try:
            self._open()
        except Exception as exc:  # noqa: BLE001  raised again by `wait_open`
            self._failure = translate_any(exc, self.path)
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
            self._ended = True
            self._fail_all(self._has_ended())
            self._wakeup.close()
            self.file.close()

    def _open(self) -> None:
        self._process = this_process()
        self.file = File(self.path, self.options, create=self.creates, expected=self._expected)
        try:
            self._wakeup = Wakeup(self.path)
        except BaseException:
            self.file.close()
            raise

    def _take(self) -> list[Ticket]:
        """Everything that has something to write now. The others wait for messages."""
        work: list[Ticket] = []
        try:
            self._renew_writer()
            db, now = self.file.writer, self.file.clock.now()
            self._look_for_deaths()
            self._standing = [ticket for ticket in self._standing if ticket.state is State.WAITING]
            if self._standing and self._changed(now):
                work += [ticket for ticket in self._standing if ticket.urgent(db, now)]
            while self._inbox and not work:
                ticket = self._inbox[0]
                urgent = ticket.urgent(db, now)  # if this raises, it is answered with the rest
                self._inbox.popleft()
                if urgent:
                    work.append(ticket)
                elif isinstance(ticket, Claimant) and ticket.wait_for_messages():
                    self._standing.append(ticket)
        except Exception as exc:  # noqa: BLE001  whatever it is, the thread has to live
            self._failed(exc, [*work, *self._standing, *self._drain()])
            return []
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
        if self._trouble is not None:
            timeout = min(timeout, max(0.0, self._trouble_checked + _TROUBLE_CHECK - time.monotonic()))
        self._asleep = True
        if not self._inbox and not self._stopping:
            self._wakeup.wait(timeout, watch=bool(self._standing))
        self._asleep = False

    def _tidy(self) -> bool:
        """When nobody has written for a while, in this process or another: one bounded step; is there more to do?"""
        now = time.monotonic()
        if self._trouble is not None:
            self._check_trouble(now)
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
        except Exception:  # noqa: BLE001  whoever works with the file next is told
            self._untidy = False
        return self._untidy

    def _check_trouble(self, now: float) -> None:
        """Whether it is over, where nobody else finds out; at most once a second."""
        if now - self._trouble_checked < _TROUBLE_CHECK:
            return
        self._trouble_checked = now
        try:
            self.file.check()
            self._renew_writer()
            if self._wanted and self.file.room(self.file.writer) < self._wanted:
                return
            self.file.try_to_write()
        except Exception:  # noqa: BLE001  it goes on
            return
        self._trouble = None

    def _transact(self, found: Sequence[Ticket]) -> None:
        """`found` and what has queued up meanwhile, in one transaction; where something spoils it, each in its own."""
        work, spoilt = self._attempt(found, drain=True)
        if not spoilt:
            return
        for ticket in work:
            if ticket.state is State.RUNNING:  # one that waits for messages may have been served by another's
                self._attempt([ticket], drain=False)

    def _attempt(self, found: Sequence[Ticket], *, drain: bool) -> tuple[list[Ticket], bool]:
        """One transaction; what it worked on, and whether the fault lies with one of several, none of which is answered."""
        work: list[Ticket] = []
        waiting: list[Claimant] = []
        committing = False
        self._untidy, self._worked_at = True, time.monotonic()
        try:
            self.file.check()
            self._renew_writer()
            db = self.file.writer
            with self.file.turn:
                db.execute("BEGIN IMMEDIATE")
                work = self._begin(found, drain=drain)
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
        except Exception as exc:  # noqa: BLE001  whatever it is, those who wait are told and the thread lives
            self._roll_back()
            if committing and in_doubt(exc):
                self._broken = True
                self._fail(work, commit_unknown(exc, self.path))
                return work, False
            spoilt = len(work) > 1 and isinstance(translate_any(exc, self.path), Unencodable)
            if not spoilt:
                self._failed(exc, work or self._begin(found, drain=False))
            return work, spoilt
        self._succeeded(tx)
        for ticket in work:
            if ticket not in waiting:
                ticket.finish()
        for claimant in waiting:
            if claimant.wait_for_messages() and claimant not in self._standing:
                self._standing.append(claimant)
        return work, False

    def _begin(self, found: Sequence[Ticket], *, drain: bool) -> list[Ticket]:
        work = [ticket for ticket in found if ticket.begin()]
        weight = sum(ticket.weight for ticket in work)
        size = sum(ticket.size for ticket in work)
        while drain and self._inbox and weight < MOST_WORK and size < MOST_BYTES:
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
        try:
            if self.file.writer.in_transaction:  # a full disk has rolled back already
                self.file.writer.execute("ROLLBACK")
        except Exception:  # noqa: BLE001  a connection in doubt is not used again
            self._broken = True

    def _renew_writer(self) -> None:
        if self._broken:
            self.file.reopen()
            self._broken = False

    def _succeeded(self, tx: Transaction) -> None:
        if tx.lacked:
            self._trouble = PublishFailed(lacks_room(self.path))
            self._wanted, self._trouble_checked = tx.lacked, time.monotonic()
        elif tx.publishes or not self._wanted:  # that a settlement found room says nothing of publishes
            self._trouble, self._wanted = None, 0

    def _failed(self, exc: Exception, tickets: Sequence[Ticket]) -> None:
        """Nothing of these was carried out; what that says about the file is remembered."""
        error = translate_any(exc, self.path)
        if isinstance(exc, sqlite3.Error):
            self.condemn(error)
        if isinstance(error, (Denied, StoreDamaged, Unavailable)):
            full = getattr(exc, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
            self._wanted = max(1, room_for(sum(ticket.size for ticket in tickets))) if full else 0
            self._trouble, self._trouble_checked = error, time.monotonic()
        self._fail(tickets, error)

    def _drain(self) -> list[Ticket]:
        tickets = []
        while self._inbox:
            try:
                tickets.append(self._inbox.popleft())
            except IndexError:  # a caller answered it, because the thread ended
                break
        return tickets

    def _fail_all(self, error: MqkitError) -> None:
        self._fail([*self._standing, *self._drain()], error)

    def _fail(self, tickets: Iterable[Ticket], error: MqkitError) -> None:
        for ticket in tickets:
            if ticket.begin():
                ticket.finish(error)
        self._standing = [ticket for ticket in self._standing if ticket.state is State.WAITING]
