"""Publishing: batches of what waits, over several connections at a time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from mqkit._signal import Signal
from mqkit.backends.base import Outcome, Outgoing
from mqkit.backends.sqs.errors import publish_error
from mqkit.backends.sqs.outbox import Outbox, Parcel
from mqkit.backends.sqs.places import Places
from mqkit.backends.sqs.sender import Sender, letter_of
from mqkit.backends.sqs.threads import Workers
from mqkit.errors import Lost, MqkitError, NotFound, PublishFailed, PublishUnknown, Unavailable


class SqsPublisher:
    """
    See `base.Publisher`.

    A batch is not waited for to be full: whoever is free takes what is there, so that batches grow with the load.
    """

    def __init__(self, sender: Sender, places: Places, now: Callable[[], float], *, connections: int, hop: int) -> None:
        self._sender = sender
        self._places = places
        self._now = now
        self._connections = connections
        self._hop = hop
        self._workers = Workers(connections, "mqkit-sqs-send")
        self._lock = threading.Lock()
        self._outbox = Outbox()
        self._sending: dict[int, list[Parcel]] = {}  # batches under way
        self._number = 0
        self._active = 0
        self._outcomes: deque[Outcome] = deque()
        self._changed = Signal()
        self._trouble: MqkitError | None = None
        self._blocked: str | None = None
        self._abandoned = False

    @property
    def blocked(self) -> str | None:
        return self._blocked

    def submit(self, batch: Sequence[Outgoing]) -> None:
        now = self._now()
        parcels = []
        for message in batch:
            try:
                parcels.append(Parcel(letter_of(message, self._places, now, hop=self._hop), message))
            except Unavailable as exc:
                self._trouble = exc
                self._outcomes.append((message.token, PublishFailed(str(exc))))
            except MqkitError as exc:
                self._outcomes.append((message.token, exc))
        with self._lock:
            for parcel in parcels:
                self._outbox.put(parcel)
            more = min(self._connections - self._active, -(-len(parcels) // 10))
            self._active += more
        for _ in range(more):
            self._workers.run(self._drain)

    def collect(self, timeout: float) -> Sequence[Outcome]:
        self._changed.wait(timeout if not self._outcomes and self._trouble is None else 0.0)
        outcomes = []
        while self._outcomes:
            outcomes.append(self._outcomes.popleft())
        if not outcomes and self._trouble is not None:
            raise Lost(str(self._trouble)) from self._trouble
        return outcomes

    def wake(self) -> None:
        self._changed.set()

    def abandon(self) -> Sequence[Outcome]:
        with self._lock:
            self._abandoned = True
            unsent = self._outbox.clear()
            under_way = [parcel for batch in self._sending.values() for parcel in batch]
            self._sending.clear()
            outcomes = list(self._outcomes)
            self._outcomes.clear()
        for parcel in unsent:
            outcomes.append((parcel.message.token, PublishFailed("not sent: the connection to SQS broke before it")))
        for parcel in under_way:
            outcomes.append(
                (parcel.message.token, PublishUnknown("sent or not, nobody knows; publish again with the same id"))
            )
        return outcomes

    def close(self) -> None:
        self._workers.close()
        self._sender.close()

    # -- on the workers ------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        while True:
            with self._lock:
                batch = [] if self._trouble is not None else self._outbox.take()
                if not batch:
                    self._active -= 1
                    return
                self._number += 1
                number = self._number
                self._sending[number] = batch
            answers: Sequence[MqkitError | None]
            try:
                answers = self._sender.send([parcel.letter for parcel in batch])
                self._blocked = None
            except MqkitError as exc:
                answers = [exc] * len(batch)
                if isinstance(exc, Unavailable):
                    self._trouble, self._blocked = exc, str(exc)
            except Exception as exc:  # noqa: BLE001  a bug must not leave callers without an answer
                answers = [PublishUnknown(f"sent or not, nobody knows: {exc!r}; publish again with the same id")] * len(
                    batch
                )
            self._answered(number, batch, answers)

    def _answered(self, number: int, batch: list[Parcel], answers: Sequence[MqkitError | None]) -> None:
        for parcel, error in zip(batch, answers, strict=True):
            if isinstance(error, NotFound):
                self._places.forget(parcel.message.address)
        with self._lock:
            if self._sending.pop(number, None) is None:
                return  # it was given up meanwhile
            self._outbox.answered(batch)
            for parcel, error in zip(batch, answers, strict=True):
                outcome = None if error is None else publish_error(error)
                self._outcomes.append((parcel.message.token, outcome))
        self._changed.set()
