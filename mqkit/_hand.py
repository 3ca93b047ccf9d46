"""Hand: what one consumer holds, and which of it may start."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

from mqkit._forming import Forming
from mqkit._isolation import Isolation
from mqkit._lanes import Lanes
from mqkit._reserve import Reserve
from mqkit._settings import Settings
from mqkit.backends.base import Received
from mqkit.message import Delivery, Holder


class Hand:
    """
    Everything handed out by the backend and not settled. Used by the pump thread only, but for `waiting`, which it
    shares with the gate.

    A delivery is in `inflight` until it is settled, given back or revoked. Meanwhile it stands behind others of its key,
    or forms a batch, or (at most once) waits in the reserve to be settled first, or waits for a worker, or runs.
    """

    def __init__(
        self,
        settings: Settings,
        holder: Holder,
        waiting: dict[Any, Delivery[Any]],
        *,
        now: Callable[[], float],
    ) -> None:
        self.inflight: dict[Any, Delivery[Any]] = {}
        self.lanes = Lanes() if settings.ordered else None
        self.forming = Forming(settings.batch, now) if settings.batch is not None else None
        self.reserve = Reserve(settings.concurrency) if settings.early and not settings.live else None
        self.isolation = Isolation()
        self.next: list[Delivery[Any]] = []  # start once the settlement before them in their key is carried out
        self.start: Callable[[Any], None]  # the crew's, once there is one
        self._waiting = waiting
        self._holder = holder
        # What is settled before its handler starts has never killed a process twice.
        self._crashes = settings.retry.crashes if self.reserve is None else math.inf
        self._direct = self.forming is None and self.lanes is None and self.reserve is None  # nothing waits for others

    # -- taking ----------------------------------------------------------------------------------------------------

    def take(self, deliveries: Sequence[Received]) -> None:
        crashes, direct, holder, suspects = self._crashes, self._direct, self._holder, self.isolation.suspects
        inflight, waiting, start = self.inflight, self._waiting, self.start
        for received in deliveries:
            delivery: Delivery[Any] = Delivery(received, holder)
            handle = received.handle
            inflight[handle] = delivery
            if direct and received.lost < crashes and not suspects:
                waiting[handle] = delivery
                start(delivery)
            else:
                self._queue(delivery)

    def start_next(self) -> None:
        """What stood in its key behind messages that are settled now, also in the eyes of whoever takes over from us."""
        ready, self.next = self.next, []
        for follower in ready:
            if self.holds(follower):
                self._queue(follower)

    def hand_over_batch(self) -> None:
        """Hand over the forming batch if it is full or old enough, but for those revoked since."""
        if self.forming is not None and self.forming.ready:
            self._next_step([delivery for delivery in self.forming.take() if self.holds(delivery)])

    def start_now(self, members: list[Delivery[Any]]) -> None:
        for delivery in members:
            self._waiting[delivery._received.handle] = delivery
        self.start(members if self.forming is not None else members[0])

    def holds(self, delivery: Delivery[Any]) -> bool:
        return self.inflight.get(delivery._received.handle) is delivery

    def _queue(self, delivery: Delivery[Any]) -> None:
        """Start it, or let it wait for others: a suspect, those of its key, those of its batch."""
        forming, isolation, suspect = self.forming, self.isolation, delivery._received.lost >= self._crashes
        if isolation.suspects and (self.lanes is not None or not suspect):
            isolation.held.append(delivery)  # with order a second suspect too: what is before it in its key may be held
            return
        batch = forming.members if forming is not None and not suspect else None
        if self.lanes is not None and not self.lanes.admit(delivery, batch):
            return
        if suspect:
            isolation.suspects.append(delivery)
        elif forming is None:
            self._next_step([delivery])
        else:
            forming.join(delivery)
            if forming.full:
                self.hand_over_batch()

    def _next_step(self, members: list[Delivery[Any]]) -> None:
        """Of a piece of work that waits for nobody: be settled first, or start."""
        if self.reserve is not None:
            self.reserve.put(members)
        else:
            self.start_now(members)

    # -- letting go ------------------------------------------------------------------------------------------------

    def settled(self, delivery: Delivery[Any], *, again: bool, stopping: bool) -> list[Delivery[Any]]:
        """
        One that ran is not in hand any more.

        Args:
            again: It will come again, so those of its key must.
            stopping: Nothing new starts; the place of the others in their key is kept by the backend.

        Returns:
            Those of its key that are given back now.
        """
        self.isolation.ended(delivery)
        if self.lanes is None:
            return []
        ready, back = self.lanes.finished(delivery, again=again)
        if stopping or self.isolation.suspects:
            back, ready = [*back, *ready], []
        self.next += ready
        return [follower for follower in back if self._drop(follower)]

    def revoked(self, received: Received) -> None:
        """One went to another consumer; those behind it in its key are void too."""
        delivery = self.inflight.pop(received.handle, None)
        self._waiting.pop(received.handle, None)
        if delivery is None:
            return
        self.isolation.dropped(delivery)
        if self.lanes is not None:
            for follower in self.lanes.dropped(delivery):
                self._drop(follower)

    def hold_back(self, keys: Collection[str | None]) -> list[Delivery[Any]]:
        """Of keys whose first message comes again: what would start now behind it, in order, to be given back."""
        back = [delivery for delivery in self.next if delivery.key in keys]
        self.next = [delivery for delivery in self.next if delivery.key not in keys]
        for delivery in back:
            self._drop(delivery)
        return back

    def unbegun(self, keep: Sequence[Delivery[Any]], unsent: Sequence[Delivery[Any]]) -> list[Delivery[Any]]:
        """
        Let go of what no handler has begun, in the order it came.

        Args:
            keep: Those that stay all the same.
            unsent: Those a handler has ended, with copies the broker would not take yet.
        """
        kept = {id(delivery) for delivery in keep}
        outside_lanes = self.lanes.take_followers() if self.lanes is not None else set()
        outside_lanes |= {id(delivery) for delivery in (*unsent, *self.isolation.held, *self.next)}
        unstarted = {id(delivery) for delivery in self.forming.take()} if self.forming is not None else set()
        if self.reserve is not None:
            unstarted |= {id(delivery) for delivery in self.reserve.take_back()}
        self.isolation.held, self.next = [], []
        back: list[Delivery[Any]] = []
        for handle, delivery in list(self.inflight.items()):
            if id(delivery) in kept:
                continue
            # At most once, what waits for a worker is settled: it is not ours to give back, and runs.
            waited = self.reserve is None and self._waiting.pop(handle, None) is delivery
            if waited or id(delivery) in outside_lanes or id(delivery) in unstarted:
                del self.inflight[handle]
                back.append(delivery)
                if self.lanes is not None and id(delivery) not in outside_lanes:
                    self.lanes.finished(delivery, again=True)
        return back

    def clear(self) -> None:
        """The connection is gone, and with it all that is not settled. What was settled first runs all the same."""
        self.inflight.clear()
        if self.reserve is not None:
            self.reserve.take_back()
        else:
            self._waiting.clear()
        self.isolation.clear()
        self.next.clear()
        if self.forming is not None:
            self.forming.take()
        if self.lanes is not None:
            self.lanes.clear()

    def _drop(self, delivery: Delivery[Any]) -> bool:
        return self.inflight.pop(delivery._received.handle, None) is not None
