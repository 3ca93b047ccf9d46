"""Receiving from a queue, a group or dead letters: long polls on threads of their own, leases renewed by the owner's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mqkit.backends.base import Address, Done, Received, Release, Settlement, Turn
from mqkit.backends.parked import Parked, Waiting
from mqkit.backends.sqs import wire
from mqkit.backends.sqs.desk import Arrival, Desk, alone_tag
from mqkit.backends.sqs.holdings import Held, Holdings, by_group
from mqkit.backends.sqs.options import MOST, SqsOptions
from mqkit.backends.sqs.polls import Polls
from mqkit.backends.sqs.relay import Relay
from mqkit.backends.sqs.sender import Answers
from mqkit.backends.sqs.threads import Workers
from mqkit.errors import Denied, LeaseLost, Lost, MqkitError, NotFound, Unavailable

KEEP = 0.2  # seconds for which what was given back stays here, in case it is wanted here again
LEAVE = 2.0  # seconds a close waits for polls; a thread waits for those that take longer
WORN = 4  # returns that AWS has counted, from which on a copy without any is given back
FRESH = 0.5  # seconds for which notes need not be read again: whoever dies alone holds its lease longer


class SqsReceiver:
    """
    See `base.Receiver`.

    Without order, what is given back stays here for a moment, because SQS counts each return as if its holder had died.
    With order it stays here, hidden from others and in its place, until it is handed out again or all of it is given back.
    """

    def __init__(
        self,
        desk: Desk,
        address: Address,
        relays: Sequence[Relay],
        options: SqsOptions,
        now: Callable[[], float],
        *,
        ordered: bool,
        pause: float,
    ) -> None:
        self.now = now
        self._desk = desk
        self._address = address
        self._relays = relays
        self._options = options
        self._ordered = ordered
        self._holdings = Holdings(float(options.visibility))
        self._workers = Workers(options.connections, "mqkit-sqs-settle")
        self._bell = threading.Event()
        self._polls = Polls(
            self._poll,
            "mqkit-sqs-poll",
            most=options.polls,
            longest=options.patience,
            pause=pause,
            arrived=self._bell.set,
        )
        self._fresh: list[Arrival] = []  # came, and not looked at
        self._ahead: deque[Held] = deque()
        self._kept: deque[Held] = deque()
        self._kept_since = 0.0
        self._parked = Parked()
        self._places: dict[int, Held] = {}  # of what is parked
        self._dues: dict[int, float] = {}  # ... and when it is due
        self._order: dict[int, int] = {}  # by identity of what is held: its place, by when it came
        self._came = 0
        self._hands: dict[Any, Held] = {}
        self._staged: list[tuple[Settlement, Held]] = []
        self._staged_since = 0.0
        self._revoked: list[Received] = []
        self._refused: list[tuple[Received, MqkitError]] = []
        self._alone: set[str] = set()  # ids of messages with a note that they run alone
        self._over: set[str] = set()  # ... whose note may go
        self._notes: dict[str, int] = {}
        self._notes_read = 0.0
        self._closed = False

    # -- the contract --------------------------------------------------------------------------------------------------

    def settle(self, settlements: Sequence[Settlement]) -> None:
        if not self._staged:
            self._staged_since = time.monotonic()
        for each in settlements:
            held = self._hands.pop(each.delivery.handle, None)
            if held is None:
                self._refused.append((each.delivery, self._lost()))
            else:
                self._staged.append((each, held))

    def receive(self, room: int, timeout: float) -> Turn:
        deadline = time.monotonic() + timeout
        self._serve()
        deliveries = self._take(room)
        while not (deliveries or self._revoked or self._refused):
            left = self._patience(room, deadline)
            woken = self._bell.wait(left) if left > 0 else self._bell.is_set()
            self._bell.clear()
            self._serve()
            deliveries = self._take(room)
            if woken or time.monotonic() >= deadline:
                break
        return self._turn(deliveries)

    def isolate(self, delivery: Received) -> None:
        self._alone.add(delivery.id)  # first: a call without an answer may have been carried out
        with self._as_unavailable(), contextlib.suppress(Denied):  # without the right to note it, it is never convicted
            self._desk.note_alone(delivery.id, delivery.solo + 1)

    def flush(self, timeout: float) -> Turn:
        del timeout  # each call is bounded
        self._drop_expired()
        self._carry_out()
        return self._turn(())

    def wake(self) -> None:
        self._bell.set()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._polls.stop()
        for relay in self._relays:
            relay.stop()
        if self._alone:  # who runs alone and is given back has killed nobody
            with contextlib.suppress(MqkitError):
                self._desk.forget_alone(sorted(self._alone))
        settled = {id(held) for each, held in self._staged if isinstance(each, Done)}
        self._give_back([held for held in self._holdings.all() if id(held) not in settled])
        if not self._left(LEAVE):
            # Not a daemon: what a poll brings that nobody waits for would be hidden from everybody for a whole lease.
            with contextlib.suppress(RuntimeError):  # the interpreter is ending
                threading.Thread(target=self._left, args=(None,), name="mqkit-sqs-leave").start()

    # -- time ----------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._drop_expired()
        if self._staged and (self._ordered or self._staged_long_enough()):
            self._carry_out()
        self._renew()
        for relay in self._relays:
            with self._as_unavailable():
                relay.serve()

    def _patience(self, room: int, deadline: float) -> float:
        now = time.monotonic()
        until = min(deadline, now + self._holdings.lease / 4)
        if self._staged:
            until = min(until, self._staged_since + self._options.linger)
        if self._kept and not room:
            until = min(until, self._kept_since + KEEP)
        due = self._parked.next_due() if room else None
        if due is not None:
            until = min(until, now + due - self.now())
        return until - now

    def _staged_long_enough(self) -> bool:
        age = time.monotonic() - self._staged_since
        return len(self._staged) >= MOST or age >= self._options.linger

    def _drop_expired(self) -> None:
        """This process slept, or could not renew: others may have these."""
        if over := self._holdings.expired(time.monotonic(), ordered=self._ordered):
            self._drop(over)

    def _renew(self) -> None:
        renewable = self._holdings.renewable(time.monotonic())
        if not renewable:
            return
        until = time.monotonic() + self._holdings.lease
        trouble: MqkitError | None = None
        gone: list[Held] = []
        for held, error in self._in_tens(renewable, self._extend):
            if error is None:
                self._holdings.renewed(held, until)
            elif isinstance(error, LeaseLost):
                gone.append(held)
            else:
                trouble = error
        if gone:
            if self._ordered:
                groups = {held.group for held in gone}
                gone = [held for held in self._holdings.all() if held.group in groups]
            self._drop(gone)
        if trouble is not None:
            raise _for_turn(trouble)

    def _extend(self, held: Sequence[Held]) -> Answers:
        return self._desk.hide(held, self._options.visibility)

    def _drop(self, gone: Iterable[Held]) -> None:
        """What others may have is revoked where it is in the core's hands, and forgotten elsewhere."""
        lost = {id(held) for held in gone}
        for held in gone:
            self._forget(held)
            if self._hands.pop(held.handle, None) is not None:
                self._revoked.append(held.received)
        self._refused += [(each.delivery, self._lost()) for each, held in self._staged if id(held) in lost]
        self._staged = [entry for entry in self._staged if id(entry[1]) not in lost]
        if self._ordered:
            parked, self._parked = self._places, Parked()
            self._places = {}
            for place, held in parked.items():
                if id(held) not in lost:
                    self._put_aside(held, self._dues.get(place, 0.0))
        self._ahead = deque(held for held in self._ahead if id(held) not in lost)
        self._kept = deque(held for held in self._kept if id(held) not in lost)

    def _forget(self, held: Held) -> None:
        self._holdings.remove(held)
        self._order.pop(id(held), None)

    # -- settling ------------------------------------------------------------------------------------------------------

    def _carry_out(self) -> None:
        staged, self._staged = self._staged, []
        ended: dict[int, tuple[Settlement, Held]] = {}
        for each, held in staged:
            verdict = isinstance(each, Done) or each.attempt is not None
            if each.delivery.id in self._alone or (each.delivery.solo and verdict):
                self._over.add(each.delivery.id)
            if isinstance(each, Done):
                ended[id(held)] = (each, held)
            elif self._ordered:
                self._park(each, held)
            else:
                self._keep(held)
        trouble: MqkitError | None = None
        for held, error in self._in_tens([held for _, held in ended.values()], self._delete):
            if error is None or (isinstance(error, LeaseLost) and held.tried):
                self._forget(held)
            elif isinstance(error, LeaseLost):
                self._forget(held)
                self._refused.append((held.received, error))
            else:
                held.tried = True
                self._staged.append(ended[id(held)])
                trouble = error
        self._tidy_notes()
        if trouble is not None:
            raise _for_turn(trouble)

    def _delete(self, held: Sequence[Held]) -> Answers:
        return self._desk.delete([each.receipt for each in held])

    def _in_tens(
        self, held: Sequence[Held], call: Callable[[Sequence[Held]], Answers]
    ) -> list[tuple[Held, MqkitError | None]]:
        """What became of each; what a call fails with is what became of its ten."""
        return self._in_batches([held[at : at + MOST] for at in range(0, len(held), MOST)], call)

    def _in_batches(
        self, batches: Sequence[Sequence[Held]], call: Callable[[Sequence[Held]], Answers]
    ) -> list[tuple[Held, MqkitError | None]]:
        def carried(batch: Sequence[Held]) -> Answers:
            try:
                return call(batch)
            except MqkitError as exc:
                return [exc] * len(batch)

        if not batches:
            return []
        found = self._workers.each([lambda batch=batch: carried(batch) for batch in batches])  # type: ignore[misc]
        return [
            entry for batch, answers in zip(batches, found, strict=True) for entry in zip(batch, answers, strict=True)
        ]

    def _park(self, release: Release, held: Held) -> None:
        changes: dict[str, Any] = {}
        if release.attempt is not None:
            changes = {"attempt": release.attempt, "since": release.since, "solo": 0, "lost": 0}
        held.received = wire.once_more(held.received, **changes)
        held.handle = None
        self._put_aside(held, self.now() + release.after if release.after else 0.0)

    def _put_aside(self, held: Held, due: float) -> None:
        place = self._order[id(held)]
        self._places[place], self._dues[place] = held, due
        self._parked.put(Waiting(place, held.received, due))

    def _keep(self, held: Held) -> None:
        held.received = wire.once_more(held.received)
        held.handle = None
        if not self._kept:
            self._kept_since = time.monotonic()
        self._kept.append(held)

    # -- taking --------------------------------------------------------------------------------------------------------

    def _poll(self, most: int, wait: int) -> list[Arrival]:
        """On a thread of the polls. What is not due is put back at once, without a way through here."""
        arrivals = self._desk.poll(most, wait)
        now = self.now()
        early = [arrival for arrival in arrivals if arrival.head is not None and arrival.head.due > now]
        if not early:
            return arrivals
        with contextlib.suppress(MqkitError):  # they come again
            self._desk.hop(early, now, self._options.hop)
        return [arrival for arrival in arrivals if arrival not in early]

    def _take(self, room: int) -> list[Received]:
        with self._as_unavailable():
            self._fresh += self._polls.take()
            self._look_at_fresh()
        taken: list[Held] = []
        if room:
            for waiting in self._parked.take(room, self.now()):
                self._dues.pop(waiting.tag)
                taken.append(self._places.pop(waiting.tag))
            while self._kept and len(taken) < room:
                taken.append(self._kept.popleft())
            while self._ahead and len(taken) < room:
                held = self._ahead.popleft()
                if self._ordered and self._parked.holds(held.received):
                    self._put_aside(held, 0.0)
                else:
                    taken.append(held)
        elif not self._ordered:
            self._return_surplus()
        self._polls.allow(room - len(taken) - len(self._ahead) - len(self._fresh))
        for held in taken:
            held.handle = held.received.handle
            self._hands[held.handle] = held
        return [held.received for held in taken]

    def _look_at_fresh(self) -> None:
        """What its last holders wrote about messages that came back is read before they are handed out."""
        if not self._fresh:
            return
        notes: dict[str, int] = {}
        fresh = [self._held(arrival) for arrival in self._fresh]
        returned = [held.received for held in fresh if held.received.lost]
        if returned:
            notes = self._read_notes()
            if any(alone_tag(received.id) in notes for received in returned):
                notes = self._read_notes(anew=True)  # its holder may have survived, and said so
        for held in fresh:
            received = held.received
            if received.lost:
                received.solo = notes.get(alone_tag(received.id), 0)
            self._came += 1
            self._order[id(held)] = self._came
            self._holdings.add(held)
            self._ahead.append(held)
        self._fresh = []

    def _read_notes(self, *, anew: bool = False) -> dict[str, int]:
        if anew or time.monotonic() - self._notes_read > min(FRESH, self._holdings.lease / 4):
            began = time.monotonic()
            with contextlib.suppress(Denied):  # without the right to read notes nobody could write one
                self._notes = self._desk.read_alone()
            self._notes_read = began
        return self._notes

    def _tidy_notes(self) -> None:
        if self._over:
            with self._as_unavailable():
                self._desk.forget_alone(sorted(self._over))
            self._alone -= self._over
            self._over.clear()

    def _return_surplus(self) -> None:
        """The core's hands are full: others should have what was given back a while ago, and what came beyond."""
        if self._ahead and not self._kept:
            self._kept_since = time.monotonic()
        self._kept.extend(self._ahead)
        self._ahead.clear()
        if self._kept and time.monotonic() - self._kept_since > KEEP:
            kept = list(self._kept)
            self._kept.clear()
            self._give_back(kept)

    # -- leaving -------------------------------------------------------------------------------------------------------

    def _give_back(self, held: Sequence[Held]) -> None:
        """
        To whoever asks first. Of an ordering group all at once, and visible after a second: where they become visible one
        by one, somebody gets a later one first.
        """
        worn = [each for each in held if self._is_worn(each)]
        self._in_tens(worn, lambda batch: self._desk.replace([each.arrival for each in batch]))
        shown = [each for each in held if each not in worn]
        self._in_batches(by_group(shown, MOST), lambda batch: self._desk.hide(batch, 1 if self._ordered else 0))
        for each in held:
            self._forget(each)

    def _is_worn(self, held: Held) -> bool:
        """
        AWS counts each return as if somebody had died, until a message that harms nobody is a suspect; a copy begins anew.

        Not where FIFO would drop the copy, and not of a foreign message, whose id would be another one.
        """
        received = held.received
        if received.solo:  # a copy would begin without what speaks against it
            return False
        return received.lost >= WORN and held.arrival.head is not None and not self._desk.route.fifo

    def _left(self, timeout: float | None) -> bool:
        """When all polls are over and what they brought is given back. False: not within the time."""
        longest = self._options.patience + 2 * self._options.timeout if timeout is None else timeout
        until = time.monotonic() + longest
        over = self._polls.join(longest)
        for relay in self._relays:
            over = relay.join(max(0.0, until - time.monotonic())) and over
        if not over and timeout is not None:
            return False
        try:
            with contextlib.suppress(MqkitError):
                late = self._polls.take()
                self._give_back([self._held(arrival) for arrival in [*self._fresh, *late]])
        finally:
            self._workers.close()
            for relay in self._relays:
                relay.close()
            self._desk.close()
        return True

    def _held(self, arrival: Arrival) -> Held:
        raw = arrival.raw
        received = wire.received(self._address, self._desk.route.native, raw, arrival.head, arrival.until)
        group = received.native.attributes.get("MessageGroupId", "") if self._ordered else ""
        return Held(raw["ReceiptHandle"], group, received, arrival.until, arrival=arrival)

    # -- small things --------------------------------------------------------------------------------------------------

    def _turn(self, deliveries: Sequence[Received]) -> Turn:
        revoked, self._revoked = self._revoked, []
        refused, self._refused = self._refused, []
        return Turn(deliveries, revoked, refused)

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"{self._address}: the delivery is not in hand any more; another consumer may have it")

    @contextlib.contextmanager
    def _as_unavailable(self) -> Any:
        try:
            yield
        except MqkitError as exc:
            raise _for_turn(exc) from exc


def _for_turn(error: MqkitError) -> MqkitError:
    """
    What an error means to a receiver: its handles outlive every connection, so that nothing is lost with one. With the
    queue all of them are.
    """
    if isinstance(error, NotFound):
        return Lost(str(error))
    return Unavailable(str(error)) if isinstance(error, Lost) else error
