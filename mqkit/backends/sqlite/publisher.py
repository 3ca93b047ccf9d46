"""Publishing: batches become rows of the log in the commit thread's next transaction."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from mqkit.backends.base import Address, Outcome, Outgoing
from mqkit.backends.sqlite.committer import Committer, Ticket, Transaction, release
from mqkit.backends.sqlite.errors import publish_error
from mqkit.backends.sqlite.listener import sweep_sometimes
from mqkit.backends.sqlite.wire import Parcel
from mqkit.errors import MqkitError, NotFound, PublishFailed, PublishUnknown


class _Batch(Ticket):
    def __init__(self, publisher: SqlitePublisher, messages: Sequence[Outgoing]) -> None:
        super().__init__(publisher.changed, weight=len(messages), size=sum(len(each.body) for each in messages))
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
        for address, parcel in self._parcels.items():
            try:
                if address.kind == "broadcast":
                    sweep_sometimes(tx, tx.appender.route(address).destination)
                tx.appender.add(address, parcel)
            except NotFound as exc:
                self._refused[address] = exc

    def finish(self, error: MqkitError | None = None) -> None:
        if error is not None:
            error = publish_error(error)
        self._publisher._finished.append(self)
        super().finish(error)

    def outcomes(self) -> list[Outcome]:
        if self.error is not None:
            return [(message.token, self.error) for message in self._messages]
        if self._refused:
            return [(message.token, self._refused.get(message.address)) for message in self._messages]
        return [(message.token, None) for message in self._messages]

    def given_up(self, path: str) -> list[Outcome]:
        error: MqkitError
        if self.withdraw():
            error = PublishFailed(f"SQLite file {path} was not free to write; withdrawn, not published")
        else:
            error = PublishUnknown(f"SQLite file {path} has not answered; publish again with the same id")
        return [(message.token, error) for message in self._messages]


class SqlitePublisher:
    """See `base.Publisher`. An outcome without an error is a commit."""

    def __init__(self, committer: Committer) -> None:
        self.changed = threading.Condition()
        self._committer = committer
        self._finished: deque[_Batch] = deque()
        self._unanswered: set[_Batch] = set()
        self._refusals: list[Outcome] = []
        self._woken = False
        self._closed = False

    @property
    def blocked(self) -> str | None:
        if self._committer.has_room():
            return None
        return f"the disk of SQLite file {self._committer.path} has less free space than the reserve"

    def submit(self, batch: Sequence[Outgoing]) -> None:
        if not batch:
            return
        blocked = self.blocked
        if blocked:
            error = PublishFailed(f"{blocked}; not published, free some space")
            self._refusals += [(message.token, error) for message in batch]
            return
        ticket = _Batch(self, batch)
        self._committer.submit(ticket)
        self._unanswered.add(ticket)

    def collect(self, timeout: float) -> Sequence[Outcome]:
        with self.changed:
            if not (self._finished or self._refusals):
                self.changed.wait_for(lambda: self._finished or self._woken, timeout)
            self._woken = False
        outcomes, self._refusals = self._refusals, []
        while self._finished:
            ticket = self._finished.popleft()
            self._unanswered.discard(ticket)
            outcomes += ticket.outcomes()
        return outcomes

    def wake(self) -> None:
        with self.changed:
            self._woken = True
            self.changed.notify_all()

    def abandon(self) -> Sequence[Outcome]:
        outcomes = list(self.collect(0))
        for ticket in self._unanswered:
            outcomes += ticket.given_up(self._committer.path)
        self._unanswered.clear()
        return outcomes

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            release(self._committer)
