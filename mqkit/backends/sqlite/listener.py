"""Listening to a broadcast: live rows that exist only while somebody listens, read past a cursor in memory."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Sequence

from mqkit.backends.base import Address, Received, Settlement, Turn
from mqkit.backends.sqlite import leases, wire
from mqkit.backends.sqlite.committer import Committer
from mqkit.backends.sqlite.errors import translate
from mqkit.backends.sqlite.log import find_route
from mqkit.backends.sqlite.schema import SHIFT
from mqkit.backends.sqlite.shared import release
from mqkit.backends.sqlite.ticket import Claimant, State, Transaction
from mqkit.errors import MqkitError


class _Watch(Claimant):
    """Waits until the broadcast has moved past a point; needs no transaction of its own."""

    def __init__(self, listener: SqliteListener) -> None:
        super().__init__(listener.changed)
        self.destination = listener.destination
        self._cursor = listener.cursor

    def urgent(self, db: sqlite3.Connection, now: float) -> bool:
        del now
        if _last(db, self.destination) > self._cursor:
            self.finish()
        return False

    def claim(self, tx: Transaction) -> bool:
        return _last(tx.db, self.destination) > self._cursor


class SqliteListener:
    """See `base.Receiver`, of a broadcast: at most once, nothing to settle."""

    def __init__(self, committer: Committer, address: Address, lease: float) -> None:
        self.changed = threading.Condition()
        self._committer = committer
        self._address = address
        self._lease = lease
        self._file = committer.file
        self._renewed_at = time.monotonic()
        self._woken = False
        self._closed = False
        self._db = self._file.reader()
        try:
            self.destination, self._owner, self.cursor = committer.run(self._join)
        except BaseException:
            self._file.release(self._db)
            raise

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Broadcasts are not settled."""

    def receive(self, room: int, timeout: float) -> Turn:
        self._file.refuse_inherited()
        deadline = time.monotonic() + timeout
        if time.monotonic() - self._renewed_at > self._lease / 3:
            self._renew()
        deliveries = self._fetch(room) if room else []
        if not deliveries:
            self._wait(deadline, watch=room > 0)
            deliveries = self._fetch(room) if room else []
        return Turn(deliveries)

    def isolate(self, delivery: Received) -> None:
        """A broadcast is never handed out twice."""

    def flush(self, timeout: float) -> Turn:
        del timeout
        return Turn()

    def wake(self) -> None:
        if self._file.inherited:
            return  # nobody waits, and a thread of the parent may have held the lock
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    def now(self) -> float:
        return self._file.clock.now()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._file.inherited:
            with contextlib.suppress(MqkitError):  # else its lease runs out
                self._committer.run(self._leave)
        self._file.release(self._db)
        release(self._committer)

    def _wait(self, deadline: float, *, watch: bool) -> None:
        deadline = min(deadline, self._renewed_at + self._lease / 3)
        ticket = _Watch(self)
        if watch:
            self._committer.submit(ticket)
        with self.changed:
            self.changed.wait_for(
                lambda: self._woken or ticket.state is State.DONE, max(0, deadline - time.monotonic())
            )
            self._woken = False
            if ticket.state is not State.DONE:
                ticket.state = State.WITHDRAWN
        if ticket.error is not None:
            raise ticket.error

    def _fetch(self, room: int) -> list[Received]:
        try:
            rows = self._db.execute(
                f"SELECT {wire.MESSAGE} FROM mq_message m WHERE m.id > ? AND m.id < ? ORDER BY m.id LIMIT ?",
                (self.cursor, (self.destination + 1) << SHIFT, room),
            ).fetchall()
        except sqlite3.Error as exc:
            error = translate(exc, self._file.path)
            self._committer.condemn(error)
            raise error from exc
        if rows:
            self.cursor = rows[-1][0]
        return [wire.first_received(row, self._owner, self._address) for row in rows]

    def _renew(self) -> None:
        def renew(tx: Transaction) -> bool:
            return leases.renew(tx.db, self._owner, tx.now + self._lease)

        self._renewed_at = time.monotonic()
        if not self._committer.run(renew):  # silent for too long: begin again at the end
            self.destination, self._owner, self.cursor = self._committer.run(self._join)

    def _join(self, tx: Transaction) -> tuple[int, int, int]:
        destination = find_route(tx.db, self._address).destination
        owner = leases.new_owner(tx.db, -destination, tx.now + self._lease, tx.boot)
        sweep(tx, destination)
        return destination, owner, _last(tx.db, destination)

    def _leave(self, tx: Transaction) -> None:
        tx.db.execute("DELETE FROM mq_owner WHERE id = ?", (self._owner,))
        sweep(tx, self.destination)


_KEPT = 5.0  # seconds a listener may lag behind


def sweep(tx: Transaction, destination: int) -> None:
    """Forget listeners that died and messages that everybody had time to read; with no listener, all of them."""
    tx.db.execute("DELETE FROM mq_owner WHERE grp = ? AND (until <= ? OR boot <> ?)", (-destination, tx.now, tx.boot))
    [(listeners,)] = tx.db.execute("SELECT count(*) FROM mq_owner WHERE grp = ?", (-destination,)).fetchall()
    tx.db.execute("UPDATE mq_destination SET keep = ? WHERE id = ?", (listeners, destination))
    tx.db.execute(
        "DELETE FROM mq_message WHERE id > ? AND id < ? AND (published < ? OR NOT ?)",
        (destination << SHIFT, (destination + 1) << SHIFT, tx.now - _KEPT, listeners),
    )


def sweep_sometimes(tx: Transaction, destination: int) -> None:
    """Once a second, by who publishes: no listener may be left to do it."""
    if tx.now - tx.swept.get(destination, 0.0) > 1.0:
        tx.swept[destination] = tx.now
        sweep(tx, destination)


def _last(db: sqlite3.Connection, destination: int) -> int:
    row = db.execute("SELECT last FROM mq_destination WHERE id = ?", (destination,)).fetchone()
    return row[0] if row else 0
