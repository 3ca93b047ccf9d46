"""Receiving as a member of a consumer group, with a ledger per partition that goes along with each commit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from kafka import TopicPartition as Partition
from kafka.structs import OffsetAndMetadata

from mqkit.backends.base import Declaration, Done, Received, Release, Settlement, Turn
from mqkit.backends.kafka.desk import Desk, Handle
from mqkit.backends.kafka.ledger import Position
from mqkit.backends.kafka.member import Member
from mqkit.backends.kafka.names import Names
from mqkit.backends.kafka.producer import Transactions, Undecided
from mqkit.backends.kafka.publisher import record_of
from mqkit.backends.kafka.record import ProducerRecord
from mqkit.backends.kafka.relay import Relay
from mqkit.backends.kafka.trim import Trimmer
from mqkit.errors import LeaseLost, Lost, MqkitError, Unavailable

AHEAD = 2  # windows of records that wait here before their partition is paused
WIDTH = 10  # windows that may be behind one that is not done
LONGEST = 0.1  # seconds of one wait: the driver and the relay want to be served
AGAIN = 0.2  # seconds until what the cluster did not take is tried again
QUIET = 10.0  # seconds between two words about that

log = logging.getLogger("mqkit")


class KafkaReceiver:
    """See `base.Receiver`."""

    def __init__(
        self,
        member: Member,
        transactions: Transactions,
        relay: Relay,
        trimmer: Trimmer,
        names: Names,
        source: Declaration,
        window: int,
        now: Callable[[], float],
    ) -> None:
        self.now = now
        self._member = member
        self._transactions = transactions
        self._relay = relay
        self._trimmer = trimmer
        self._ours_alone = names.topic(source.address)  # others may read what everybody's topic holds
        self._names = names
        self._source = source
        self._window = window
        self._patience = member.cluster.options.patience
        self._lease = member.cluster.options.lease
        self._served = time.monotonic()
        self._fresh: set[Partition] = set()  # ours, and not known yet where others left off
        self._desks: dict[Partition, Desk] = {}
        self._limbo: dict[Partition, Desk] = {}  # the group has left us out: somebody else's, or ours again in a moment
        self._limbo_since = 0.0
        self._leaving: Collection[Partition] = ()
        self._staged: list[Settlement] = []
        self._revoked: list[Received] = []
        self._refused: list[tuple[Received, MqkitError]] = []
        self._not_before = 0.0  # when what could not be carried out is tried again
        self._said = -QUIET
        self._trouble: MqkitError | None = None
        self._void = False  # handlers have ended, or go on, whose verdicts we have not written down
        self._closed = False
        relay.enter()

    # -- the contract ------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> None:
        self._staged.extend(settlements)

    def receive(self, room: int, timeout: float) -> Turn:
        try:
            return self._receive(room, timeout)
        except Exception as exc:
            # Only after what may pass the caller goes on with what he holds.
            if isinstance(exc, Lost) or not (isinstance(exc, MqkitError) and exc.retryable):
                self._void = True
            raise

    def _receive(self, room: int, timeout: float) -> Turn:
        if self._trouble is not None:
            raise self._trouble
        self._look_whether_it_slept()
        if self._member.doubtful:
            try:
                self._find_out(self._lease + self._patience)
            except Lost as exc:
                if not self._staged:
                    raise
                self._trouble = exc
                self._refuse_staged()
                return Turn((), (), self._told_refused())
        self._carry_out()
        deadline = time.monotonic() + timeout
        while True:
            self._look_whether_it_slept()
            self._serve()
            deliveries = self._take(room) if room and self._at_ease else []
            left = deadline - time.monotonic()
            if deliveries or self._refused or self._revoked or left <= 0 or self._member.doubtful:
                break
            if self._member.wait(min(left, self._next_look())):
                break
        return Turn(deliveries, self._told_revoked(), self._told_refused())

    @property
    def _at_ease(self) -> bool:
        """Is what we hold ours, as far as we know, and all verdicts on it carried out?"""
        return not self._staged and not self._limbo and not self._member.unsettled

    def _look_whether_it_slept(self) -> None:
        now = time.monotonic()
        if now - self._served > self._lease / 2:  # is anything of it still ours?
            self._member.doubt()
        self._served = now

    def _find_out(self, within: float) -> None:
        """Nothing that is in hand may go on before it is known whether it is still ours. Raises `Lost`: it takes too long."""
        deadline = time.monotonic() + within
        while self._member.doubtful or self._limbo:
            if time.monotonic() > deadline:
                raise Lost(f"{self._member.cluster} does not say whether this process is still one of its group")
            self._served = time.monotonic()
            self._serve()
            self._member.wait(LONGEST)

    def isolate(self, delivery: Received) -> None:
        partition = _partition(delivery)
        desk, offset = self._desks[partition], _offset(delivery)
        desk.ledger.hold(offset, desk.ledger.state(offset)._replace(solo=delivery.solo + 1))
        self._commit_now({partition: desk}, self._patience)

    def flush(self, timeout: float) -> Turn:
        try:
            self._carry_out_all(timeout)
            self._commit_now({place: desk for place, desk in self._desks.items() if desk.dirty}, timeout)
        except Exception:
            self._void = True
            raise
        return Turn((), self._told_revoked(), self._told_refused())

    def wake(self) -> None:
        self._member.wake()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for desk in () if self._void else self._desks.values():
            desk.give_back()
        with contextlib.suppress(MqkitError):  # then what was in hand counts as lost with us
            self._commit_now(self._desks, 2.0, given_back=not self._void)
        self._member.close()
        self._relay.leave()
        self._transactions.close()

    # -- settling ----------------------------------------------------------------------------------------------------

    def _carry_out_all(self, timeout: float) -> None:
        """Raises `Unavailable`: there is something left."""
        deadline = time.monotonic() + timeout
        self._carry_out()
        while self._staged:
            if time.monotonic() > deadline:
                raise Unavailable(f"{self._member.cluster} has not taken {len(self._staged)} verdicts in {timeout:g} s")
            self._find_out(timeout)
            self._member.wait(LONGEST)
            self._carry_out()

    def _carry_out(self) -> None:
        if self._member.doubtful or time.monotonic() < self._not_before:
            return
        staged, self._staged = self._staged, []
        with_copies: list[Done] = []
        desks, limbo = self._desks, self._limbo
        for settlement in staged:
            received = settlement.delivery
            handle: Handle = received.handle  # type: ignore[assignment]  # ours
            desk = desks.get(handle.partition)
            if handle.partition in limbo:
                self._staged.append(settlement)
            elif desk is None or desk.out.get(handle.offset) is not received:
                self._refused.append((received, LeaseLost(f"{received.id} went to another consumer")))
            elif isinstance(settlement, Release):
                desk.release(handle.offset, settlement, self.now())
            elif settlement.copies:
                with_copies.append(settlement)
            else:
                desk.settle(handle.offset)
        if with_copies:
            self._refused += self._carry_out_together(with_copies)

    def _refuse_staged(self) -> None:
        staged, self._staged = self._staged, []
        error = LeaseLost(f"{self._source.address} was given to others while this process slept")
        self._refused += [(settlement.delivery, error) for settlement in staged]

    def _carry_out_together(self, settlements: Sequence[Done]) -> Sequence[tuple[Received, MqkitError]]:
        """
        Copies and commit in one transaction: of all, and where that is refused, of each by itself.

        Where the group has changed meanwhile, it is done again as soon as it is known what of it is still ours; where the
        cluster cannot be reached, as soon as it can.
        """
        membership = None
        try:
            membership = self._member.metadata
            self._transact(settlements, membership)
        except Undecided:  # what we believe must not be written down over what is
            self._forget({_partition(settlement.delivery) for settlement in settlements})
            raise
        except Lost:
            self._member.doubt(membership.generation_id if membership is not None else None)
            self._staged.extend(settlements)
        except Unavailable as exc:
            self._staged.extend(settlements)
            self._put_off(exc)
        except MqkitError as exc:
            if len(settlements) == 1:
                return [(settlements[0].delivery, exc)]
            return [refused for one in settlements for refused in self._carry_out_together([one])]
        return ()

    def _put_off(self, error: Unavailable) -> None:
        now = time.monotonic()
        self._not_before = now + AGAIN
        if now - self._said > QUIET:
            self._said = now
            log.warning("settlements.delayed", extra={"source": str(self._source.address), "error": str(error)})

    def _transact(self, settlements: Sequence[Done], membership: Any) -> None:
        names, now = self._names, self.now()
        records: list[ProducerRecord] = []
        touched: dict[Partition, Desk] = {}
        for settlement in settlements:
            for copy in settlement.copies:
                records.append(record_of(copy, names.topic(copy.address), names, now))
            partition = _partition(settlement.delivery)
            touched[partition] = self._desks[partition]
        self._member.finish_commit(self._patience)
        self._commit_ended()
        before = {partition: desk.ledger.copy() for partition, desk in touched.items()}
        for settlement in settlements:
            touched[_partition(settlement.delivery)].ledger.settle(_offset(settlement.delivery))
        offsets = {
            partition: OffsetAndMetadata(desk.ledger.base, desk.ledger.metadata(), -1)
            for partition, desk in touched.items()
        }
        try:
            self._transactions.carry_out(records, offsets, membership)
        except BaseException:
            for partition, desk in touched.items():
                desk.ledger = before[partition]
            raise
        for settlement in settlements:
            del touched[_partition(settlement.delivery)].out[_offset(settlement.delivery)]
        for partition, desk in touched.items():
            desk.committed(Position(offsets[partition].offset, offsets[partition].metadata))

    # -- serving the group -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        member = self._member
        member.step()
        self._relay.step()
        if missing := member.missing():
            self._deleted(missing[0])
        for change in member.heard():
            if change.kind == "assigned":
                self._fresh |= change.partitions
            elif change.kind == "left_out":
                self._left_out(change.partitions)
            else:
                self._fresh -= change.partitions
                self._forget(change.partitions)
                self._leaving = ()
        if leaving := member.leaving:
            self._leave(leaving)
        elif self._fresh and member.joined:
            self._begin()
        elif self._limbo and self._others_have_it():
            self._forget(list(self._limbo))
        self._commit()
        self._trimmer.trim(self._ours_alone, self._done_with)
        arrived = member.fetch()
        for partition, desk in self._desks.items():
            if records := arrived.get(partition):
                if not desk.arrived(records):
                    self._deleted(partition.topic)
                if len(desk.inbox) > AHEAD * self._window and not desk.paused:
                    desk.paused = True
                    member.pause([partition])
            elif not desk.inbox and member.joined and (position := member.position(partition)) is not None:
                desk.dirty = desk.ledger.skip_to(position) or desk.dirty

    def _deleted(self, topic: str) -> NoReturn:
        """What was done in it must not be written down for another one of this name."""
        self._forget(list(self._desks))
        raise Lost(f"{self._source.address}: topic {topic} was deleted")

    def _left_out(self, lost: Iterable[Partition]) -> None:
        """
        We were silent for too long. Who joins again soon may find everything as it was.

        Whoever takes over writes down what he holds before his handlers begin, so an unchanged commit says that nobody did.
        """
        if not self._limbo:
            self._limbo_since = time.monotonic()
        self._fresh -= set(lost)
        for partition in lost:
            desk = self._desks.pop(partition, None)
            if desk is not None:
                desk.inbox.clear()
                desk.paused = False
                self._limbo[partition] = desk

    def _others_have_it(self) -> bool:
        """We are one of the group again, with nothing of what was ours; or it takes too long to become one."""
        return self._member.at_rest or time.monotonic() - self._limbo_since > self._lease + self._patience

    def _begin(self) -> None:
        """In what is new to us, as soon as it is known where others left off."""
        positions = self._member.committed(self._fresh)
        if positions is None:
            return
        self._fresh = set()
        ordered = self._source.order == "key"
        for partition, position in positions.items():
            desk = self._limbo.get(partition)
            if desk is not None and desk.left == position:
                self._desks[partition] = self._limbo.pop(partition)
                self._member.begin(partition, desk.ledger.last + 1)
                continue
            base, metadata = position or (0, "")
            desk = self._desks[partition] = Desk(self._source.address, base, metadata, ordered=ordered)
            desk.left = position
            self._member.begin(partition, base)
        self._forget(list(self._limbo))

    def _leave(self, leaving: set[Partition]) -> None:
        """Let what runs end, then write down where others go on."""
        self._leaving = set(leaving)
        self._fresh -= self._leaving
        desks = {partition: self._desks[partition] for partition in leaving if partition in self._desks}
        for desk in desks.values():
            desk.inbox.clear()
        if any(desk.out for desk in desks.values()):
            return
        self._commit_now(desks, self._patience, given_back=True)
        self._forget(leaving)
        self._leaving = ()
        self._member.let_go(leaving)

    def _forget(self, partitions: Iterable[Partition]) -> None:
        for partition in partitions:
            desk = self._limbo.pop(partition, None) or self._desks.pop(partition, None)
            if desk is not None:
                self._revoked.extend(desk.out.values())

    def _commit(self) -> None:
        member = self._member
        if member.committing:
            return
        self._commit_ended()
        dirty = {partition: desk for partition, desk in self._desks.items() if desk.dirty}
        if dirty and not member.doubtful:
            member.commit_soon(_positions(dirty))
            for desk in dirty.values():
                desk.dirty = False

    def _commit_ended(self) -> None:
        """Note what became of the one that was under way."""
        if (ended := self._member.commit_ended()) is None:
            return
        for partition, position in ended.positions.items():
            desk = self._desks.get(partition) or self._limbo.get(partition)
            if desk is not None and ended.failure is None:
                desk.left = position
            elif desk is not None:
                desk.dirty = True

    def _done_with(self) -> dict[Partition, int]:
        """Where others would go on, in the topic that nobody else reads; as far as that is committed."""
        if self._member.committing:
            return {}
        return {
            partition: desk.ledger.base
            for partition, desk in self._desks.items()
            if partition.topic == self._ours_alone and not desk.dirty
        }

    def _commit_now(self, desks: dict[Partition, Desk], timeout: float, *, given_back: bool = False) -> None:
        if desks:
            self._member.finish_commit(timeout)
            self._commit_ended()
            positions = _positions(desks, given_back=given_back)
            self._member.commit(positions, timeout)
            for partition, desk in desks.items():
                desk.committed(positions[partition])

    def _told_revoked(self) -> Sequence[Received]:
        revoked, self._revoked = self._revoked, []
        return revoked

    def _told_refused(self) -> Sequence[tuple[Received, MqkitError]]:
        """Only with a turn: what is told where something is raised is heard by nobody."""
        refused, self._refused = self._refused, []
        return refused

    # -- taking ------------------------------------------------------------------------------------------------------

    def _take(self, room: int) -> list[Received]:
        taken: list[Received] = []
        marked: dict[Partition, Desk] = {}
        for partition, desk in self._desks.items():
            if partition in self._leaving or len(taken) >= room:
                continue
            if fresh := desk.take(room - len(taken), self.now(), WIDTH * self._window):
                for received in fresh:
                    received.handle = Handle(partition, received.native.offset)
                taken += fresh
                marked[partition] = desk
            if desk.paused and len(desk.inbox) < self._window:
                desk.paused = False
                self._member.resume([partition])
        # What is in hand is written down before it can kill us, or be handled by us and then by others who know nothing of it.
        try:
            self._commit_now(marked, min(self._patience, self._lease))
        except Unavailable as exc:
            if isinstance(exc, Lost):  # the group changes, or has left us out: we shall hear of it
                self._member.doubt()
            for received in taken:
                self._desks[_partition(received)].release(_offset(received), Release(received), self.now())
            return []
        return taken

    def _next_look(self) -> float:
        dues = [due for desk in self._desks.values() if (due := desk.next_due()) is not None]
        soonest = min(dues, default=self.now() + LONGEST) - self.now()
        return max(0.0, min(LONGEST, soonest, self._relay.patience()))


def _positions(desks: dict[Partition, Desk], *, given_back: bool = False) -> dict[Partition, Position]:
    return {
        partition: Position(desk.ledger.base, desk.ledger.metadata(given_back=given_back))
        for partition, desk in desks.items()
    }


def _partition(received: Received) -> Partition:
    handle: Handle = received.handle  # type: ignore[assignment]  # ours
    return handle.partition


def _offset(received: Received) -> int:
    handle: Handle = received.handle  # type: ignore[assignment]  # ours
    return handle.offset
