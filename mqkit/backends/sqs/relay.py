"""The relay: what waits for a topic or a FIFO queue beside it, and is sent there when it is due, by its consumers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from mqkit.backends.base import Address
from mqkit.backends.sqs import wire
from mqkit.backends.sqs.desk import Arrival, Desk
from mqkit.backends.sqs.names import fifo_id
from mqkit.backends.sqs.options import MOST, SqsOptions
from mqkit.backends.sqs.places import Places
from mqkit.backends.sqs.polls import Polls
from mqkit.backends.sqs.sender import Letter
from mqkit.errors import ConfigError, MqkitError, NotFound, Unencodable

log = logging.getLogger("mqkit")


class Relay:
    """One long poll at a time, on a thread. What it cannot send on comes again."""

    def __init__(
        self, desk: Desk, address: Address, places: Places, options: SqsOptions, now: Callable[[], float]
    ) -> None:
        self._desk = desk
        self._address = address
        self._places = places
        self._hop = options.hop
        self._now = now
        self._polls = Polls(
            self._poll, "mqkit-sqs-relay", most=1, longest=options.patience, pause=0.0, arrived=lambda: None
        )

    def serve(self) -> None:
        """Raises what it failed with since."""
        try:
            self._polls.take()
        except NotFound:
            self._places.forget(self._address)  # it was deleted; with its next declaration it is there again
        self._polls.allow(MOST)

    def stop(self) -> None:
        self._polls.stop()

    def join(self, timeout: float) -> bool:
        return self._polls.join(timeout)

    def close(self) -> None:
        self._desk.close()

    def _poll(self, most: int, wait: int) -> Sequence[Any]:
        arrivals = self._desk.poll(most, wait)
        now = self._now()
        early = [arrival for arrival in arrivals if arrival.head is not None and arrival.head.due > now]
        if early:
            self._desk.hop(early, now, self._hop)
        if due := [arrival for arrival in arrivals if arrival not in early]:
            try:
                self._move(due)
            except MqkitError:
                self._places.forget(self._address)
                raise
        return ()

    def _move(self, due: Sequence[Arrival]) -> None:
        """One that its target does not take comes again, and keeps nothing else waiting. Raises why others do."""
        trouble: MqkitError | None = None
        for arrival, error in zip(due, self._desk.move(due, [self._letter(each) for each in due]), strict=True):
            if isinstance(error, (Unencodable, ConfigError)):
                extra = {"to": str(self._address), "message_id": arrival.raw["MessageId"], "error": str(error)}
                log.warning("delayed.refused", extra=extra)
            else:
                trouble = error or trouble
        if trouble is not None:
            raise trouble

    def _letter(self, arrival: Arrival) -> Letter:
        route, packed = self._places.find(self._address), wire.repack(arrival.raw)
        if not route.fifo:
            return Letter(route, packed)
        head, number = arrival.head, arrival.raw["MessageId"]
        if head is None:
            return Letter(route, packed, 0, number, number)
        group = head.id if head.key is None or head.envelope.attempt > 1 else head.key
        # By the message that waited: sending it on twice is dropped, and no other copy of the same id is.
        return Letter(route, packed, 0, fifo_id(group), fifo_id(f"{head.id}:d{number}"))
