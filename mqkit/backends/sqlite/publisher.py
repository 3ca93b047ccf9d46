"""Publishing: batches become rows of the log in the commit thread's next transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence

from mqkit._signal import Signal
from mqkit.backends.base import Address, Outcome, Outgoing
from mqkit.backends.sqlite.committer import MOST_BYTES, Committer
from mqkit.backends.sqlite.errors import publish_error
from mqkit.backends.sqlite.listener import sweep_sometimes
from mqkit.backends.sqlite.shared import release
from mqkit.backends.sqlite.ticket import Ticket, Transaction
from mqkit.backends.sqlite.wire import Parcel
from mqkit.errors import MqkitError, NotFound, PublishFailed, PublishUnknown, StoreDamaged

_ROW = 200  # bytes a message takes beside its body: envelope, headers, id, index


class _Batch(Ticket):
    def __init__(self, publisher: SqlitePublisher, messages: Sequence[Outgoing]) -> None:
        super().__init__(publisher.changed, weight=len(messages), size=size_of(messages))
        self._publisher = publisher
        self._messages = messages
        self._refused: dict[Address, MqkitError] = {}
        self._parcels: dict[Address, Parcel] = {}
        for message in messages:
            parcel = self._parcels.get(message.address)
            if parcel is None:
                parcel = self._parcels[message.address] = Parcel()
            parcel.add(message)

    def write(self, tx: Transaction) -> None:
        self._refused.clear()
        try:
            tx.take_room(self.size)
        except PublishFailed as exc:
            self.failure = exc
            return
        for address, parcel in self._parcels.items():
            try:
                if address.kind == "broadcast":
                    sweep_sometimes(tx, tx.appender.route(address).destination)
                tx.appender.add(address, parcel)
            except NotFound as exc:
                self._refused[address] = exc

    def finish(self, error: MqkitError | None = None) -> None:
        super().finish(publish_error(error) if error is not None else None)
        self._publisher.note(self)

    def outcomes(self) -> list[Outcome]:
        if self.error is not None:
            return [(message.token, self.error) for message in self._messages]
        if self._refused:
            return [(message.token, self._refused.get(message.address)) for message in self._messages]
        return [(message.token, None) for message in self._messages]

    def not_sent(self, path: str) -> list[Outcome]:
        error = PublishFailed(f"withdrawn before SQLite file {path} was free to write; not sent")
        return [(message.token, error) for message in self._messages]

    def unknown(self, path: str) -> list[Outcome]:
        error = PublishUnknown(f"SQLite file {path} has not answered; publish again with the same id")
        return [(message.token, error) for message in self._messages]


class SqlitePublisher:
    """See `base.Publisher`. An outcome without an error is a commit."""

    def __init__(self, committer: Committer) -> None:
        self.changed = threading.Condition()  # the states of its batches
        self._ready = Signal()
        self._committer = committer
        self._finished: deque[_Batch] = deque()
        self._unanswered: set[_Batch] = set()
        self._refusals: list[Outcome] = []
        self._closed = False

    @property
    def blocked(self) -> str | None:
        return self._committer.trouble()

    def submit(self, batch: Sequence[Outgoing]) -> None:
        for part in parts_of(batch):
            ticket = _Batch(self, part)
            try:
                self._committer.submit(ticket)
            except StoreDamaged as exc:
                self._refusals += [(message.token, exc) for message in part]
            else:
                self._unanswered.add(ticket)

    def collect(self, timeout: float) -> Sequence[Outcome]:
        self._committer.file.refuse_inherited()
        self._ready.wait(timeout if not (self._finished or self._refusals) else 0.0)
        outcomes, self._refusals = self._refusals, []
        while self._finished:
            ticket = self._finished.popleft()
            self._unanswered.discard(ticket)
            outcomes += ticket.outcomes()
        return outcomes

    def wake(self) -> None:
        self._ready.set()

    def note(self, batch: _Batch) -> None:
        """By the commit thread: it is finished."""
        self._finished.append(batch)
        self._ready.set()

    def abandon(self) -> Sequence[Outcome]:
        """What no transaction has begun with is withdrawn and certainly not sent; of the rest nobody knows."""
        self._committer.file.refuse_inherited()
        withdrawn = [ticket for ticket in self._unanswered if ticket.withdraw()]
        outcomes = list(self.collect(0))
        self._unanswered.difference_update(withdrawn)
        for ticket in withdrawn:
            outcomes += ticket.not_sent(self._committer.path)
        for ticket in self._unanswered:
            outcomes += ticket.unknown(self._committer.path)
        self._unanswered.clear()
        return outcomes

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            release(self._committer)


def size_of(messages: Sequence[Outgoing]) -> int:
    """Bytes they take in the file, about."""
    return sum(len(each.body) for each in messages) + _ROW * len(messages)


def parts_of(batch: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    """In order, each about as much as fits into one transaction: a disk that is nearly full takes the first of them."""
    if size_of(batch) <= MOST_BYTES:
        if batch:
            yield batch
        return
    part: list[Outgoing] = []
    size = 0
    for message in batch:
        part.append(message)
        size += len(message.body) + _ROW
        if size >= MOST_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
