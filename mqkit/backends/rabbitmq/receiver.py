"""Receiving from a queue, a group or dead letters: one connection, one channel, acknowledgements once per turn."""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from pika import exceptions as amqp

from mqkit.backends.base import Declaration, Done, Received, Release, Settlement, Turn
from mqkit.backends.parked import Parked, Waiting
from mqkit.backends.rabbitmq import names, topology, wire
from mqkit.backends.rabbitmq.connection import ANSWER, SILENCE, Connection, closing_reason
from mqkit.backends.rabbitmq.errors import refusal
from mqkit.backends.rabbitmq.note import Note, Noted
from mqkit.backends.rabbitmq.notes import Notes, has_id, name_of
from mqkit.backends.rabbitmq.tags import Tags
from mqkit.errors import LeaseLost, Lost, MqkitError, Unavailable

MOST = 65_535  # of a prefetch
KEEP = 0.2  # seconds for which what was given back stays here, in case it is wanted here again
FEW = 4  # acknowledgements that leave no doubt
STEADY = 1.0  # seconds for which less must be wanted before the server is told to send less
# Seconds for which who ran a message alone is given time to say that it lives: its connection may have broken and nothing
# else, and it notices that a little later than the server, which has handed the message to us.
DOUBT = SILENCE + ANSWER + 3.0
_SPREADS = (4, 0)  # version from which the priority of a consumer decides which one of a queue is active
_epochs = itertools.count(1)


class RabbitReceiver:
    """
    See `base.Receiver`.

    The server pushes up to a prefetch; what has come and is not handed out waits in `_inbox`. Without order, what is
    given back goes to the server after a moment. With order it stays here, unacknowledged and in its place.
    """

    def __init__(
        self,
        connection: Connection,
        source: Declaration,
        window: int,
        now: Callable[[], float],
        unsaid: list[Note],
    ) -> None:
        self.now = now
        self._connection = connection
        self._address = source.address
        self._source = source
        self._window = min(window, MOST)
        self._counted = topology.counts(source)
        self._ordered = topology.ordered(source) and not source.address.dead
        self._queues = names.queues_of(source.address, source.partitions)
        self._notes = Notes(connection, source.address, unsaid)
        self._read_notes: dict[str, Noted] | None = None  # within one call of `_take`
        self._ran_alone: dict[str, Received] = {}  # and have no verdict yet; by their names in notes
        self._parked = Parked()
        self._doubtful: set[int] = set()  # tags of what waits there for a second look at its notes
        self._tags = Tags()
        self._inbox: deque[tuple[Any, Any, bytes]] = deque()
        self._hands: dict[int, int] = {}  # handle to tag
        self._staged: list[Settlement] = []
        self._kept: deque[tuple[int, Received]] = deque()
        self._kept_since = 0.0
        self._base = next(_epochs) << 48
        self._again = itertools.count(1 << 47)  # handles of those that are handed out again from here
        self._trouble: MqkitError | None = None
        self._consumers: list[tuple[Sequence[str], int]] = []  # tags and prefetch, in the order they were added
        self._content_since = time.monotonic()
        self._served = time.monotonic()
        self._lease = 2.0 * connection.server.options.heartbeat
        self._closed = False
        self._channel = connection.channel()
        self._channel.add_on_cancel_callback(self._cancelled)
        if not source.address.dead:
            # Queues that are missing or of another kind are noticed here and not while consuming.
            for queue in self._queues:
                self._look(queue)

    # -- the contract ------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> None:
        self._staged.extend(settlements)

    def receive(self, room: int, timeout: float) -> Turn:
        try:
            return self._receive(room, timeout)
        except Lost:
            raise
        except amqp.AMQPError as exc:  # the channel ended while something else on its connection was waited for
            self._check()
            raise Lost(f"{self._address}: {exc}") from exc
        except Unavailable as exc:
            # Some of what was staged or had come is in nobody's hands now; with the channel all of it goes back.
            self._trouble = Lost(str(exc))
            raise self._trouble from exc

    def _receive(self, room: int, timeout: float) -> Turn:
        if time.monotonic() - self._served > self._lease / 2:  # this process slept: is anything of it still ours?
            try:
                self._connection.alive()
            except Lost as exc:
                if not self._staged:
                    raise
                self._trouble = exc
                return Turn((), (), self._refuse_staged())
        refused = self._carry_out(patiently=False) if self._staged else ()
        if self._kept and not room and time.monotonic() - self._kept_since > KEEP:
            self._give_back()
        if room:
            self._ask_for(room)
        began = time.monotonic()
        self._connection.step(self._patience(room, timeout) if not refused else 0.0)
        self._served = began  # not now: it may have slept inside
        self._notes.serve()
        self._check()
        return Turn(self._take(room) if room else (), (), refused)

    def isolate(self, delivery: Received) -> None:
        self._ran_alone[name_of(delivery)] = delivery
        self._notes.isolate(delivery)

    def flush(self, timeout: float) -> Turn:
        try:
            refused = self._carry_out(patiently=True)
            self._notes.confirm(timeout)
            self._notes.tidy(now=True)
            self._connection.barrier(self._channel, timeout)
        except amqp.AMQPError as exc:  # as in `receive`
            self._check()
            raise Lost(f"{self._address}: {exc}") from exc
        self._check()
        return Turn((), (), refused)

    def wake(self) -> None:
        self._connection.wake()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._notes.close(list(self._ran_alone.values()))
        if self._ordered or self._address.dead:
            self._connection.abort()  # a farewell would activate the next consumer before it returned what we hold
        else:
            self._connection.close()

    # -- settling ----------------------------------------------------------------------------------------------------

    def _carry_out(self, *, patiently: bool) -> Sequence[tuple[Received, MqkitError]]:
        self._check()
        staged, self._staged = self._staged, []
        for settlement in staged if self._ran_alone else ():
            self._ran_alone.pop(name_of(settlement.delivery), None)
        refused: list[tuple[Received, MqkitError]] = []
        released: list[tuple[Release, int]] = []
        hands, tags = self._hands, self._tags
        for settlement in staged:
            received = settlement.delivery
            tag = hands.pop(received.handle, None)  # type: ignore[call-overload]  # ours are integers
            if tag is None:
                refused.append((received, LeaseLost(f"{received.id} of {self._address} is not in hand any more")))
            elif isinstance(settlement, Done):
                tags.done(tag)
                self._notes.over(received)
            else:
                released.append((settlement, tag))
        self._acknowledge(patiently=patiently)
        for release, tag in released:
            if self._ordered:
                self._park(release, tag)
            else:
                self._keep(release.delivery, tag)
        try:
            self._notes.tidy(now=False)
        except Unavailable as exc:  # others have their turn; in a moment it is ours, and nothing depends on it
            if isinstance(exc, Lost):
                raise
        return refused

    def _acknowledge(self, *, patiently: bool) -> None:
        acknowledgements = list(self._tags.acknowledgements())
        self._connection.acknowledge(self._channel, acknowledgements, patiently=patiently)
        if patiently and len(acknowledgements) > FEW and not self._ordered:
            self._stop_consuming()

    def _stop_consuming(self) -> None:
        cancelled = [tag for tags, _ in self._consumers for tag in tags]
        self._consumers.clear()
        self._connection.cancel(self._channel, cancelled)

    def _keep(self, received: Received, tag: int) -> None:
        """Given back: for a moment it stays here, because the server would count its return as if its holder had died."""
        if not received.solo:  # if it ran alone, that was now
            self._notes.over(received)
        if not self._kept:
            self._kept_since = time.monotonic()
        self._kept.append((tag, received))

    def _give_back(self) -> None:
        """Nothing is wanted here: what is kept and what has come and was not handed out goes to others."""
        self._notes.tidy(now=True)  # before others have it, and take a note of ours for the mark of a death
        self._stop_consuming()
        back = [tag for tag, _ in self._kept] + [method.delivery_tag for method, _, _ in self._inbox]
        self._kept.clear()
        self._inbox.clear()
        with self._connection.together():
            for tag, multiple in self._tags.returned(back):
                self._channel.basic_nack(tag, multiple, requeue=True)

    def _refuse_staged(self) -> Sequence[tuple[Received, MqkitError]]:
        staged, self._staged = self._staged, []
        error = LeaseLost(f"{self._address} was given to others while this process slept")
        return [(settlement.delivery, error) for settlement in staged]

    def _park(self, release: Release, tag: int) -> None:
        received = release.delivery
        due = self.now() + release.after if release.after else 0.0
        changes: dict[str, Any] = {}
        note = None
        if release.attempt is not None:
            changes = {"attempt": release.attempt, "since": release.since, "lost": 0, "solo": 0}
            if has_id(received):  # others without may say the same, and have failed less often
                note = Note(received.id, attempt=release.attempt, since=release.since, due=due)
        self._notes.released(received, note)
        self._parked.put(Waiting(tag, msgspec.structs.replace(received, **changes), due))

    # -- taking ------------------------------------------------------------------------------------------------------

    def _patience(self, room: int, timeout: float) -> float:
        if not room:
            return min(timeout, KEEP) if self._kept else timeout
        if self._inbox or self._kept:
            return 0.0
        due = self._parked.next_due()
        return timeout if due is None else max(0.0, min(timeout, due - self.now()))

    def _take(self, room: int) -> list[Received]:
        taken: list[Received] = []
        for waiting in self._parked.take(room, self.now()):
            taken.append(self._once_more(waiting.tag, waiting.received))
            if waiting.tag in self._doubtful:
                self._doubtful.discard(waiting.tag)
                note = self._noted_now().get(name_of(waiting.received))
                taken[-1].solo = 0 if note is None else note.solo
        while self._kept and len(taken) < room:
            taken.append(self._once_more(*self._kept.popleft()))
        inbox, hands, base, address, counted = self._inbox, self._hands, self._base, self._address, self._counted
        while inbox and len(taken) < room:
            method, properties, body = inbox.popleft()
            tag = method.delivery_tag
            received = wire.received(address, base + tag, method, properties, body, counted)
            if self._ordered and self._parked.holds(received):
                self._parked.put(Waiting(tag, received))
                continue
            if received.lost and self._noted(received, tag):
                continue
            hands[base + tag] = tag
            taken.append(received)
        self._read_notes = None
        return taken

    def _once_more(self, tag: int, received: Received) -> Received:
        handle = self._base + next(self._again)
        self._hands[handle] = tag
        return msgspec.structs.replace(received, handle=handle)

    def _noted(self, received: Received, tag: int) -> bool:
        """What its last holder wrote about a message that has come back. True: it has to wait, in its place."""
        note = self._noted_now().get(name_of(received))
        if note is None:
            return False
        if note.attempt > received.attempt:
            received.attempt, received.since = note.attempt, note.since
        due = note.due if self._ordered else 0.0
        if note.solo:
            due = max(due, self.now() + DOUBT)
            self._doubtful.add(tag)
        if due <= self.now():
            return False
        self._parked.put(Waiting(tag, received, due))
        return True

    def _noted_now(self) -> dict[str, Noted]:
        if self._read_notes is None:
            self._read_notes = self._notes.read()
        return self._read_notes

    # -- consuming ---------------------------------------------------------------------------------------------------

    def _ask_for(self, room: int) -> None:
        """
        Let the server send what the core has room for, not what it may have room for one day.

        A prefetch belongs to a consumer and cannot be changed: to get more another consumer is added, to get less the
        last one is cancelled. Where only one consumer of a queue is active, its prefetch is fixed.
        """
        wanted = min(self._window, room + len(self._hands))
        have = sum(prefetch for _, prefetch in self._consumers)
        if not self._consumers:
            fixed = self._ordered or self._address.dead
            self._consume(max(1, (self._window if fixed else wanted) // len(self._queues)))
        elif self._ordered or self._address.dead:
            return
        elif wanted > have:
            self._consume(min(max(have, wanted - have), self._window - have) // len(self._queues) or 1)
            self._content_since = time.monotonic()
        elif wanted * 4 > have or len(self._consumers) == 1:
            self._content_since = time.monotonic()
        elif time.monotonic() - self._content_since > STEADY:
            for tag in self._consumers.pop()[0]:
                self._channel.basic_cancel(tag, callback=_ignore)
            self._content_since = time.monotonic()

    def _consume(self, prefetch: int) -> None:
        """Answers are not waited for: what the server has against it closes the channel."""
        prefetch = min(prefetch, MOST)
        self._channel.basic_qos(prefetch_count=prefetch, callback=_ignore)
        tags = []
        for queue in self._queues:
            arguments: dict[str, Any] = {}
            if self._ordered and self._connection.version >= _SPREADS:
                arguments["x-priority"] = names.partition_of(f"{self._base}{uuid.uuid4()}", "", 200) + 1
            tags.append(self._channel.basic_consume(queue, self._arrived, arguments=arguments, callback=_ignore))
        self._consumers.append((tags, prefetch * len(self._queues)))

    def _arrived(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        del channel
        self._tags.came(method.delivery_tag)
        self._inbox.append((method, properties, body))

    def _cancelled(self, frame: Any) -> None:
        del frame
        self._trouble = Lost(f"{self._address} was deleted, or its queue moved to another server")

    def _check(self) -> None:
        if self._trouble is not None:
            raise self._trouble
        if not self._channel.is_open:
            error = refusal(closing_reason(self._channel), f"receiving from {self._address}")
            raise error if isinstance(error, Lost) else Lost(str(error)) from error

    def _look(self, queue: str) -> None:
        what = f"{self._address} (queue {queue!r})"
        self._connection.call(self._channel, what, self._channel.queue_declare, queue=queue, passive=True)


def _ignore(frame: Any) -> None:
    del frame
