"""
A member of a consumer group; nothing here waits for the group.

Joining runs on the driver's I/O thread, so that verdicts are taken and leases kept meanwhile, and so do the callbacks of a
rebalance, which only leave notes for the owner. Private names of the driver that mqkit uses for membership are in this file.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from kafka import TopicPartition as Partition
from kafka import errors as native
from kafka.consumer.subscription_state import AsyncConsumerRebalanceListener
from kafka.structs import OffsetAndMetadata

from mqkit.backends.kafka.assignor import Assignor, KeyAssignor
from mqkit.backends.kafka.consumer import LEFT_OUT, Consumer
from mqkit.backends.kafka.errors import translate
from mqkit.backends.kafka.ledger import Position
from mqkit.backends.kafka.options import Cluster
from mqkit.errors import Lost, Unavailable

ABOUT_TO = 1.0  # seconds for which a group that changes is waited for before more is begun
HEARTBEAT = 0.5  # seconds; a change of the group is heard of with the answer to one
SLOWEST = (
    60.0  # seconds more than a lease that a group waits for a member that beats and does not join, and it for the group
)
ANSWER = 2.0  # seconds a cluster that has been silent has for an answer
POLL = 0.005  # seconds between two looks of the I/O thread whether what it must give up is let go
ONCE_MORE = 0.1  # seconds until a question that the cluster cannot answer yet is asked again


class Change(NamedTuple):
    """
    Of what is ours.

    Attributes:
        kind: `assigned`: new to us. `left_out`: the group has dropped us, others may have them. `given_up`: others may have
            them, because they were not let go in time.
    """

    kind: Literal["assigned", "left_out", "given_up"]
    partitions: frozenset[Partition]


class _Question(NamedTuple):
    """Where others left off, under way."""

    partitions: frozenset[Partition]
    answer: Any
    asked: float
    patience: float  # seconds until it is asked again


class Ended(NamedTuple):
    """A commit that was not waited for."""

    positions: Mapping[Partition, Position]
    failure: Exception | None


class Member(Consumer):
    """
    Joins as it is stepped.

    Attributes:
        leaving: Partitions to be given up as soon as `let_go` is called; the group waits for that, at most `grace`.
    """

    def __init__(
        self,
        cluster: Cluster,
        group: str,
        topics: Sequence[str],
        *,
        grace: float,
        fetch_bytes: int,
        ordered: bool = False,
    ) -> None:
        self._topics = topics
        self.changes: deque[Change] = deque()
        self.leaving: set[Partition] = set()
        self.grace = grace
        self.gone = threading.Event()  # what was to leave has left
        self.closing = False
        self._joining: Any = None
        self._joining_since = 0.0
        self._question: _Question | None = None
        self._committing: Any = None
        self._committed: Mapping[Partition, Position] = {}
        self._doubt: float | None = None  # since when
        self._beat: float | None = None  # when a heartbeat was sent whose answer ends it
        self._doubted = -1  # the generation of which nobody knows
        self._heard = time.monotonic()
        self._asked: float | None = None
        lease = cluster.options.lease
        super().__init__(
            cluster,
            fetch_bytes=fetch_bytes,
            group_id=group,
            group_instance_id=cluster.options.instance or None,
            session_timeout_ms=round(lease * 1000),
            heartbeat_interval_ms=round(min(HEARTBEAT, lease / 5) * 1000),
            max_poll_interval_ms=round((lease + SLOWEST) * 1000),
            partition_assignment_strategy=[KeyAssignor if ordered else Assignor],
        )
        self._watch_generation()
        self._guard_commits()
        try:
            self.driver.subscribe(topics, listener=_Listener(self))
            self.learn(topics)  # or the first join has no partitions, and a second one follows
        except native.KafkaError as exc:
            self.close()
            raise translate(exc, cluster) from exc
        except BaseException:
            self.close()
            raise

    # -- the group ---------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """
        Keep the membership going.

        Raises:
            Lost, Denied, ...: The group does not want us.
        """
        self._check_usable()
        self._look_whether_it_lives()
        coordinator = self.driver._coordinator
        if self._joining is not None:
            if not self._joining.is_done:
                self._look_whether_it_may_still_join()
                return
            failed, self._joining = self._joining.exception, None
            if failed is not None and not isinstance(failed, LEFT_OUT):  # who was left out joins anew
                raise self.failure(failed)
        if not self._belongs:
            coordinator.request_rejoin()
        if coordinator.need_rejoin() or coordinator.coordinator_unknown():
            self._joining = self.driver._net.call_soon_with_future(coordinator.ensure_active_group_async, None)
            self._joining.add_both(self.ring)
            self._joining_since = time.monotonic()

    @property
    def _belongs(self) -> bool:
        """
        Is it a member, and says so to the group?

        Where a leader joins for the sake of new partitions, the driver takes itself for joined once it has assigned them. If
        that does not arrive, or nobody waits for the answer any more, it is silent from then on, and does not join either.
        """
        coordinator = self.driver._coordinator
        beating = coordinator._heartbeat_loop_future
        return coordinator.stable() and coordinator._heartbeat_enabled and beating is not None and not beating.is_done

    def _watch_generation(self) -> None:
        """
        Note when the group drops us.

        The driver tells its listener only if it hears of that between two rebalances. Within one it goes on as if everything
        were still ours, and gives us what others had in the meantime without a word.
        """
        coordinator, subscription = self.driver._coordinator, self.driver._subscription
        reset = coordinator.reset_generation

        def dropped(*arguments: Any, **named: Any) -> None:
            reset(*arguments, **named)
            if not self.closing and (owned := frozenset(subscription.assigned_partitions())):
                self.changes.append(Change("left_out", owned))
                subscription.assign_from_subscribed([])
            for assignor in coordinator._assignors.values():
                assignor.member_assignment = None  # or it would claim in the next round what others have meanwhile
            self.ring()

        coordinator.reset_generation = dropped

    def _guard_commits(self) -> None:
        """
        Nothing is committed of what the group may have given to others.

        The driver tries again for a while, and meanwhile may have become a member anew, whose commits the group takes.
        """
        coordinator = self.driver._coordinator
        send = coordinator._send_offset_commit_request

        async def guarded(offsets: Any) -> Any:
            if self.outdated:  # is noted on this thread too, so nothing comes between
                raise native.CommitFailedError("the group has left us out")
            return await send(offsets)

        coordinator._send_offset_commit_request = guarded

    def heard(self) -> list[Change]:
        """What has changed since this was called last, in order."""
        changes: list[Change] = []
        while self.changes:
            changes.append(self.changes.popleft())
        if any(change.kind != "assigned" for change in changes):
            self._question = None  # its answer is from before
        return changes

    @property
    def outdated(self) -> bool:
        """Is something, of what is taken to be ours, not ours any more?"""
        return any(change.kind != "assigned" for change in tuple(self.changes))

    def _look_whether_it_lives(self) -> None:
        """Who hears nothing of the cluster for the length of a lease must believe that others have its partitions."""
        now, lease = time.monotonic(), self.cluster.options.lease
        reads = (connection.transport.last_read for connection in self._connections() if connection.transport)
        self._heard = max(self._heard, *reads, self._heard)
        if now - self._heard < lease / 2:
            self._asked = None
        elif self._asked is None:
            self.driver._manager.call_soon(self.driver._cluster.request_update)
            self._asked = now
        elif now - self._heard > lease and now - self._asked > ANSWER:
            raise Lost(f"{self.cluster} has been silent for {now - self._heard:.0f} s")

    def _look_whether_it_may_still_join(self) -> None:
        """The driver tries without end, also where it has lost its way, after which a new one is let in at once."""
        options, waited = self.cluster.options, time.monotonic() - self._joining_since
        longest = options.lease + options.patience
        if not self.driver._coordinator.coordinator_unknown():
            longest += SLOWEST  # others may keep the group waiting
        if waited > longest:
            raise Lost(f"{self.cluster} has let nobody join its group for {waited:.0f} s")

    def _connections(self) -> list[Any]:
        return list(self.driver._manager._conns.values())

    def doubt(self, generation: int | None = None) -> None:
        """
        Until the group has answered, nobody knows whether we still belong to it.

        Args:
            generation: The one that was refused; the present one, if this process slept.
        """
        self._doubt, self._beat = time.monotonic(), None
        self._doubted = self.driver._coordinator._generation.generation_id if generation is None else generation

    @property
    def doubtful(self) -> bool:
        # It has also answered where it waits, with a new generation, for what is leaving to be settled.
        if self._doubt is not None and (self.joined or self.leaving):
            coordinator = self.driver._coordinator
            beat, generation = coordinator.heartbeat, coordinator._generation.generation_id
            if self._beat is None and beat.last_send > self._doubt:  # not what was on its way before
                self._beat = beat.last_send
            answered = self._beat is not None and beat.last_receive > self._beat  # there is one on its way at a time
            if not coordinator.need_rejoin() and (answered or generation != self._doubted):
                self._doubt = None
        return self._doubt is not None

    @property
    def unsettled(self) -> bool:
        """Is the group about to say who gets what? What is begun now may have to be given up in a moment."""
        joining = self._joining is not None and time.monotonic() - self._joining_since < ABOUT_TO
        return joining or self.doubtful

    def join(self, timeout: float) -> None:
        """Step until it is a member, or that takes longer. Raises as `step`."""
        deadline = time.monotonic() + timeout
        self.step()
        while not self.joined and time.monotonic() < deadline:
            self._event.wait(0.01)
            self._event.clear()
            self.step()

    @property
    def joined(self) -> bool:
        return self._joining is None

    @property
    def at_rest(self) -> bool:
        """A member, and the group has nothing to say."""
        return self.joined and self._belongs and not self.driver._coordinator.need_rejoin()

    @property
    def metadata(self) -> Any:
        """
        As a transaction wants it, which the group fences with it.

        Raises:
            Lost: Not everything is ours any more that is taken to be. A group takes positions from who is not a member at
                all, and from a member also for what others have.
        """
        metadata = self.driver.group_metadata()
        if metadata.generation_id < 0 or self.outdated:
            raise Lost("the group has left us out")
        return metadata

    def missing(self) -> list[str]:
        """Topics that were there and are not any more, as far as is known."""
        metadata = self.driver._cluster
        return [topic for topic in self._topics if metadata.partitions_for_topic(topic) is None]

    def let_go(self, leaving: set[Partition]) -> None:
        """
        What was `leaving` is written down: the group may go on.

        Args:
            leaving: That very set. If it took too long, others are leaving by now.
        """
        self._question = None  # what leaves may come back, and others will have gone on from there
        if self.leaving is leaving:
            self.leaving = set()
            self.gone.set()

    def fetch(self, timeout: float = 0.0) -> dict[Partition, list[Any]]:
        return super().fetch(timeout) if self.joined else {}

    def close(self) -> None:
        self.closing = True
        self.let_go(self.leaving)
        super().close()

    # -- positions ---------------------------------------------------------------------------------------------------

    def committed(self, partitions: Iterable[Partition]) -> dict[Partition, Position | None] | None:
        """
        What was committed last; None where nothing was.

        Returns:
            None until that is known; it is asked for meanwhile. While somebody's transaction is open, which may be of a dead
            process, nobody knows.
        """
        wanted = frozenset(partitions)
        question, now = self._question, time.monotonic()
        if question is None or question.partitions != wanted:
            self._ask(wanted)
            return None
        if not question.answer.is_done:
            # The driver waits for long, and who is asked again answers sooner; but who is slow must not be asked ever more.
            if now - question.asked > question.patience:
                self._ask(wanted, question.patience * 2)
            return None
        failed = question.answer.exception
        if failed is None:
            self._question, found = None, question.answer.value
            return {
                partition: Position(found[partition].offset, found[partition].metadata or "")
                if partition in found
                else None
                for partition in wanted
            }
        if not getattr(failed, "retriable", False):
            self._question = None
            raise self.failure(failed)
        if now - question.asked > ONCE_MORE:
            self._ask(wanted)
        return None

    def _ask(self, partitions: frozenset[Partition], patience: float = ANSWER) -> None:
        """A question of its own: the driver's may have been asked by an earlier owner of the same partitions."""
        coordinator = self.driver._coordinator
        answer = self.driver._net.call_soon_with_future(coordinator._send_offset_fetch_request, list(partitions))
        answer.add_callback(self.ring)
        self._question = _Question(partitions, answer, time.monotonic(), patience)

    @property
    def committing(self) -> bool:
        return self._committing is not None and not self._committing.is_done

    def commit_soon(self, positions: Mapping[Partition, Position]) -> None:
        """One at a time. What became of it is told by `commit_ended`."""
        self._committed = positions
        # Not by `commit_async`, whose future is done when a coordinator that was looked for is found, and not when it answers.
        coordinator = self.driver._coordinator
        self._committing = self.driver._net.call_soon_with_future(
            coordinator._send_offset_commit_request, _offsets(positions)
        )
        self._committing.add_both(self.ring)

    def commit_ended(self) -> Ended | None:
        """What became of the last `commit_soon`; told once."""
        if self._committing is None or not self._committing.is_done:
            return None
        ended = Ended(self._committed, self._committing.exception)
        self._committing = None
        return ended

    def finish_commit(self, timeout: float) -> None:
        """
        Let the one under way end, whatever becomes of it: a later one must not be overtaken by it.

        Raises:
            Unavailable: It takes longer.
        """
        deadline = time.monotonic() + timeout
        while self.committing:
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.cluster} does not answer whether it has committed")
            self._event.wait(0.01)
            self._event.clear()

    def commit(self, positions: Mapping[Partition, Position], timeout: float) -> None:
        """Raises `Lost`: others have these partitions. `Unavailable`: no answer."""
        try:
            self.driver.commit(_offsets(positions), timeout_ms=max(1, round(timeout * 1000)))
        except (native.KafkaError, RuntimeError) as exc:
            raise self.failure(exc) from exc


class _Listener(AsyncConsumerRebalanceListener):  # type: ignore[misc]
    """Runs on the driver's I/O thread."""

    def __init__(self, member: Member) -> None:
        self._member = member

    async def on_partitions_assigned(self, assigned: Iterable[Partition]) -> None:
        """The driver also tells of what was taken away while it waited for what leaves."""
        ours = self._member.driver._subscription.assigned_partitions()
        self._note(Change("assigned", frozenset(assigned).intersection(ours)))

    async def on_partitions_revoked(self, revoked: Iterable[Partition]) -> None:
        member = self._member
        if member.closing:
            return
        member.gone.clear()
        member.leaving = set(revoked)
        member.ring()
        deadline = time.monotonic() + member.grace
        while not (member.gone.is_set() or member.closing) and time.monotonic() < deadline:
            await member.driver._net.sleep(POLL)
        if not (member.gone.is_set() or member.closing):
            member.leaving = set()
            self._note(Change("given_up", frozenset(revoked)))

    async def on_partitions_lost(self, lost: Iterable[Partition]) -> None:
        self._note(Change("left_out", frozenset(lost)))

    def _note(self, change: Change) -> None:
        self._member.changes.append(change)
        self._member.ring()


def _offsets(positions: Mapping[Partition, Position]) -> dict[Partition, OffsetAndMetadata]:
    return {
        partition: OffsetAndMetadata(position.offset, position.metadata, -1)
        for partition, position in positions.items()
    }
