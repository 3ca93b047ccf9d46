"""Receiving from a queue, a group or dead letters: settlements and the next claim share a transaction."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Sequence

from mqkit.backends.base import Address, Outgoing, Received, Release, Settlement, Turn
from mqkit.backends.sqlite import keys, leases, retention, wire
from mqkit.backends.sqlite.committer import PATIENCE, Claimant, Committer, State, Transaction, release
from mqkit.backends.sqlite.leases import Claim, Source
from mqkit.backends.sqlite.wire import Parcel
from mqkit.errors import LeaseLost, Lost, MqkitError, NotFound, PublishUnknown, Unavailable

_COMPACTED_AT_LEAST = 1000


class _Round(Claimant):
    """One `receive`: what it settles, and how much it may take."""

    def __init__(self, receiver: SqliteReceiver, settlements: Sequence[Settlement], room: int, *, renew: bool) -> None:
        super().__init__(receiver.changed, weight=max(1, len(settlements)) + room // 2)
        self.destination = receiver.source.destination
        self.settlements = settlements
        self.owner = receiver.owner  # as of the last commit
        self.renewed_at = 0.0
        self._owner = receiver.owner  # as of the transaction that runs
        self._renewed_in: Transaction | None = None
        self.void = False  # the owner row was gone: nothing of what was in hand is ours
        self.refused: list[tuple[Received, MqkitError]] = []
        self.claimed = Claim()
        self._room = room
        self._must_renew = renew
        self._lease = receiver.lease
        self._source = receiver.source
        self._address = receiver.address
        self._boot = receiver.boot

    def urgent(self, db: sqlite3.Connection, now: float) -> bool:
        if self.state is State.QUEUED and (self.settlements or not self._room or self._must_renew):
            return True
        prospect = leases.look(db, self._source, self.owner, now, self._boot)
        if prospect is None:
            return True  # `claim` says so
        self.again_at = prospect.next_time()
        return prospect.promises(now)

    def write(self, tx: Transaction) -> None:
        self._renew(tx)
        if not self.settlements:
            return
        if self.void:
            self.refused += [(each.delivery, self._lost()) for each in self.settlements]
        else:
            self._settle(tx)
        self.settlements = ()

    def claim(self, tx: Transaction) -> bool:
        if not self._room:
            return True
        if self._renewed_in is not tx:
            self._renew(tx)
        prospect = leases.look(tx.db, self._source, self._owner, tx.now, self._boot)
        if prospect is None:
            self.failure = NotFound(f"{self._address} was deleted while in use; declare it again")
            return True
        if prospect.promises(tx.now):
            self.claimed = leases.claim(tx.db, self._source, self._owner, tx.now, self._boot, self._room, prospect)
            if self.claimed:
                return True
            prospect = leases.look(tx.db, self._source, self._owner, tx.now, self._boot) or prospect
        # A claim stops after a while among messages of locked keys: then go on at once.
        self.again_at = tx.now if prospect.promises(tx.now) else prospect.next_time()
        return False

    def begin(self) -> bool:
        self._owner = self.owner
        return super().begin()

    def finish(self, error: MqkitError | None = None) -> None:
        if error is None:
            self.owner = self._owner
        else:
            self.claimed = Claim()
        super().finish(error)

    def wait_for_messages(self) -> bool:
        self.owner = self._owner
        return super().wait_for_messages()

    def _renew(self, tx: Transaction) -> None:
        self._renewed_in = tx
        self.renewed_at = time.monotonic()
        until = tx.now + self._lease
        if self._owner and leases.renew(tx.db, self._owner, until):
            return
        self.void = self.void or bool(self._owner)
        self._owner = leases.new_owner(tx.db, self._source.group, until, self._boot)

    def _settle(self, tx: Transaction) -> None:
        source, done, released = self._source, [], []
        copies: dict[int, Sequence[Outgoing]] = {}
        asked: dict[int, Received] = {}
        for each in self.settlements:
            delivery = each.delivery
            asked[delivery.native] = delivery
            if isinstance(each, Release):
                released.append(each)
            elif each.copies and (missing := _missing_copy(tx, each.copies)):
                self.refused.append((delivery, missing))
                del asked[delivery.native]
            else:
                done.append(delivery.native)
                if each.copies:
                    copies[delivery.native] = each.copies
        ours: set[int] = set()
        if done:
            ours |= leases.settle(tx.db, source, self._owner, done)
        if released:
            ours |= leases.release(tx.db, source, self._owner, released, tx.now)
        if released or source.ordered:
            tx.touch(source.destination)
        if source.ordered:
            keys.resolve(tx.db, source.group)
        if source.topic:
            retention.compact(tx.db, source.destination, tx.now, _COMPACTED_AT_LEAST + 2 * len(done), settled=done)
        for id, given in copies.items():
            for copy in given if id in ours else ():
                parcel = Parcel()
                parcel.add(copy)
                tx.appender.add(copy.address, parcel)
        if len(ours) < len(asked):
            self.refused += [(delivery, self._lost()) for id, delivery in asked.items() if id not in ours]

    def _lost(self) -> LeaseLost:
        return LeaseLost(
            f"{self._address}: the delivery belongs to another consumer by now; the settlement has no effect"
        )


class SqliteReceiver:
    """See `base.Receiver`. What it holds is renewed as a whole by every transaction of its own."""

    def __init__(self, committer: Committer, address: Address, source: Source, lease: float) -> None:
        self.changed = threading.Condition()
        self.address = address
        self.source = source
        self.lease = lease
        self.owner = 0  # no row yet
        self._committer = committer
        self._file = committer.file
        self.boot = self._file.clock.boot
        self._db = self._file.reader()
        self._staged: list[Settlement] = []
        self._held: dict[object, Received] = {}
        self._revoked: list[Received] = []
        self._refused: list[tuple[Received, MqkitError]] = []
        self._renewed_at = 0.0
        self._woken = False
        self._closed = False

    def settle(self, settlements: Sequence[Settlement]) -> None:
        held = self._held
        for each in settlements:
            delivery = each.delivery
            if held.pop(delivery.handle, None) is None:
                self._refused.append((delivery, LeaseLost(f"{self.address}: the delivery is not in hand any more")))
            else:
                self._staged.append(each)

    def receive(self, room: int, timeout: float) -> Turn:
        return self._turn(room, time.monotonic() + timeout, PATIENCE)

    def isolate(self, delivery: Received) -> None:
        owner, id = self.owner, delivery.native
        self._committer.run(lambda tx: leases.isolate(tx.db, owner, id))

    def flush(self, timeout: float) -> Turn:
        return self._turn(0, time.monotonic(), min(timeout, PATIENCE))

    def wake(self) -> None:
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    def now(self) -> float:
        return self._file.clock.now()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        owner, source = self.owner, self.source
        if owner:
            with contextlib.suppress(MqkitError):  # else its lease runs out
                self._committer.run(lambda tx: _leave(tx, source, owner))
        self._file.release(self._db)
        release(self._committer)

    def _turn(self, room: int, deadline: float, patience: float) -> Turn:
        while True:
            deliveries = self._round(room, deadline, patience)
            if deliveries or self._revoked or self._refused or self._take_wake() or time.monotonic() >= deadline:
                revoked, self._revoked = self._revoked, []
                refused, self._refused = self._refused, []
                return Turn(deliveries, revoked, refused)

    def _round(self, room: int, deadline: float, patience: float) -> Sequence[Received]:
        """One ticket, and what it brought; what it revoked and refused is noted."""
        third = self.lease / 3
        renew = bool(self._held) and time.monotonic() - self._renewed_at > third
        if not room and not self._staged and not renew:
            self._pause(min(deadline, self._renewed_at + third) if self._held else deadline)
            return ()
        ticket = _Round(self, tuple(self._staged), room, renew=renew)
        self._committer.submit(ticket)
        self._await(ticket, deadline, patience)
        if ticket.written:
            self._carried_out(ticket)
        if isinstance(ticket.error, PublishUnknown):  # a broken COMMIT: nobody knows which settlements hold
            self._staged.clear()
            self._held.clear()
            raise Lost(str(ticket.error)) from ticket.error
        if ticket.error is not None:
            raise ticket.error
        if not ticket.claimed:
            return ()
        deliveries = self._fetch(ticket.claimed)
        self._held.update((delivery.handle, delivery) for delivery in deliveries)
        return deliveries

    def _pause(self, until: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self._woken, max(0.0, until - time.monotonic()))

    def _await(self, ticket: _Round, deadline: float, patience: float) -> None:
        """Until it has messages, or has written what it had to and there is a reason to come back without."""
        if self._held:
            deadline = min(deadline, time.monotonic() + self.lease / 3)
        give_up = time.monotonic() + patience
        impatient = bool(self._refused or self._revoked)
        with self.changed:
            while ticket.state is not State.DONE:
                now = time.monotonic()
                if ticket.state is State.WAITING:
                    if impatient or self._woken or ticket.refused or ticket.void or now >= deadline:
                        ticket.state = State.WITHDRAWN
                        return
                    self.changed.wait(deadline - now)
                elif now < give_up:
                    self.changed.wait(give_up - now)
                elif ticket.state is State.RUNNING:
                    raise Lost(f"SQLite file {self._file.path} does not finish a transaction; its outcome is unknown")
                else:
                    ticket.state = State.WITHDRAWN
                    raise Unavailable(f"SQLite file {self._file.path} was not free to write; nothing was carried out")

    def _carried_out(self, ticket: _Round) -> None:
        """Its settlements are committed, whatever became of its claim."""
        if ticket.void:
            self._revoked += self._held.values()
            self._held.clear()
        for delivery, error in ticket.refused:
            if not isinstance(error, LeaseLost):  # a copy failed: the delivery stays in hand
                self._held[delivery.handle] = delivery
        self._refused += ticket.refused
        self._staged.clear()
        self.owner = ticket.owner
        self._renewed_at = max(self._renewed_at, ticket.renewed_at)

    def _fetch(self, claim: Claim) -> list[Received]:
        """The claimed messages, read outside the transaction: their leases keep them."""
        db, owner, address = self._db, self.owner, self.address
        deliveries: list[Received] = []
        try:
            if claim.side:
                rows = _read(db, [counts[0] for counts in claim.side])
                found = {row[0]: row for row in rows}
                deliveries += [
                    wire.received(found[counts[0]], counts[1:], owner, address)
                    for counts in claim.side
                    if counts[0] in found
                ]
            rows = []
            if claim.bounds:
                rows = db.execute(
                    f"""SELECT {wire.MESSAGE} FROM mq_message m WHERE m.id BETWEEN ? AND ?
                        AND (m.grp IS NULL OR m.grp = ?) ORDER BY m.id""",
                    (*claim.bounds, self.source.group),
                ).fetchall()
            elif claim.ids:
                rows = _read(db, claim.ids)
        except sqlite3.Error as exc:
            raise Lost(f"SQLite file {self._file.path}: claimed messages cannot be read ({exc})") from exc
        deliveries += [wire.first_received(row, owner, address) for row in rows]
        return deliveries

    def _take_wake(self) -> bool:
        with self.changed:
            woken, self._woken = self._woken, False
            return woken


def _read(db: sqlite3.Connection, ids: Sequence[int]) -> list[tuple[object, ...]]:
    return db.execute(
        f"SELECT {wire.MESSAGE} FROM mq_message m WHERE m.id IN (SELECT value FROM json_each(?)) ORDER BY m.id",
        (str(list(ids)),),
    ).fetchall()


def _missing_copy(tx: Transaction, copies: Sequence[Outgoing]) -> NotFound | None:
    try:
        for copy in copies:
            tx.appender.route(copy.address)
    except NotFound as exc:
        return exc
    return None


def _leave(tx: Transaction, source: Source, owner: int) -> None:
    if tx.db.execute("SELECT 1 FROM mq_owner WHERE id = ?", (owner,)).fetchone():
        leases.give_back(tx.db, source, owner, died=False)
        tx.touch(source.destination)
