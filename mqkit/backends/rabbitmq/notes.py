"""
Notes about messages that stay unacknowledged, in a queue beside their source.

AMQP lets nobody write on a message that is kept in its place. Two things have to outlive its holder all the same: that it
is about to run alone, because a count of hand-outs cannot tell the message that kills its process from its neighbours; and
with order by key the number of its next attempt, with the wait before it. A verdict removes the notes. One that is left
over because its process died right after the verdict is dropped by the server after a day.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pika
from pika.spec import Basic

from mqkit.backends.base import Address, Received
from mqkit.backends.rabbitmq import names, topology
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.errors import Lost, NotFound, Unavailable

TIDY = 1.0  # seconds between two rounds of removing what is over
LOOK = 0.05  # seconds between two looks whether others have ended their turn


class Note(msgspec.Struct, omit_defaults=True):
    """Of one message. `alone`: how often it began to run alone; the rest as in the `Release` of its last failed try."""

    id: str
    alone: int = 0
    attempt: int = 0
    since: float | None = None
    due: float = 0.0


_CLASSIC = {"x-queue-type": "classic"}  # whatever kind the vhost prefers

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Note).decode


class Notes:
    """The notes of one source. Blocking, each step bounded by the connection's patience, but for `write`."""

    def __init__(self, connection: Connection, address: Address) -> None:
        self._connection = connection
        self._address = address
        self._queue = names.notes_of(address)
        self._declarer = Declarer(connection)
        self._out: Any = None  # the channel for writing, with confirms
        self._written = self._confirmed = 0
        self._refused = False
        self._known: set[str] = set()  # ids with notes, as far as this process knows
        self._alone: set[str] = set()
        self._over: set[str] = set()
        self._tidied = time.monotonic()

    def read(self) -> dict[str, Note]:
        """By message id."""
        try:
            self._declarer.count(self._queue)  # is there one? What is in it, only reading it tells
        except NotFound:
            return {}
        found: dict[str, Note] = {}
        with self._turn(self._connection.server.options.patience) as channel:
            for note, _ in self._all(channel):
                have = found.setdefault(note.id, note)
                if have is not note:
                    have.alone += note.alone
                    if note.attempt > have.attempt:
                        have.attempt, have.since, have.due = note.attempt, note.since, note.due
        self._known.update(found)
        self._alone.update(id for id, note in found.items() if note.alone)
        return found

    def write(self, note: Note) -> None:
        """Does not wait for the server; `confirm` does."""
        out = self._out if self._out is not None and self._out.is_open else self._open()
        out.basic_publish("", self._queue, _encode(note), pika.BasicProperties(delivery_mode=2))
        self._written += 1
        self._known.add(note.id)
        if note.alone:
            self._alone.add(note.id)

    def confirm(self, timeout: float | None = None) -> None:
        """Raises `Unavailable` when the server does not have what was written."""
        if self._out is not None:
            self._connection.wait(
                lambda: self._confirmed >= self._written or not self._out.is_open, "taking a note", timeout
            )
            if self._refused or not self._out.is_open:
                raise Unavailable(f"{self._connection.server} did not take a note about a message of {self._address}")

    def released(self, received: Received, note: Note | None) -> None:
        """It stays in its place. A verdict or having survived alone ends what was noted; a new note, if any, takes its place."""
        if received.id in self._alone and (note is not None or not received.solo):
            self.over(received.id)
            self.tidy(now=True)
            if note is None and received.attempt > 1:
                note = Note(received.id, 0, received.attempt, received.since)
        if note is not None:
            self.write(note)

    def over(self, id: str) -> None:
        """It has its verdict."""
        if id in self._known:
            self._over.add(id)

    def tidy(self, *, now: bool) -> None:
        """Remove what is over: at once, or when it is time to."""
        if not self._over or not (now or time.monotonic() - self._tidied > TIDY):
            return
        self._tidied = time.monotonic()
        with self._turn(self._connection.server.options.patience if now else 0.0) as channel:
            for note, tag in self._all(channel):
                if note.id in self._over:
                    channel.basic_ack(tag)
        self._known -= self._over
        self._alone -= self._over
        self._over.clear()

    @contextmanager
    def _turn(self, patience: float) -> Iterator[Any]:
        """
        A channel to take notes from; what is not acknowledged there goes back. One process at a time, for a note that somebody
        has taken is hidden from all others: an exclusive queue is the lock, which dies with its holder's connection.

        Raises:
            Unavailable: Others have had their turn for all of `patience`, in seconds.
        """
        lock, until = names.turn_of(self._address), time.monotonic() + patience
        while True:
            channel = self._connection.channel()
            try:
                self._connection.call(
                    channel,
                    "a turn at the notes",
                    channel.queue_declare,
                    queue=lock,
                    exclusive=True,
                    arguments=_CLASSIC,
                )
                break
            except Lost:
                raise
            except Unavailable:  # 405 RESOURCE_LOCKED
                if time.monotonic() >= until:
                    raise
                self._connection.pause(LOOK)
        try:
            yield channel
        finally:
            if channel.is_open:
                channel.basic_nack(0, multiple=True, requeue=True)
            else:  # the notes were deleted
                channel = self._connection.channel()
            self._connection.call(channel, "ending a turn at the notes", channel.queue_delete, queue=lock)
            channel.close()

    def _open(self) -> Any:
        self._declarer.make(topology.notes(self._address))
        self._out = channel = self._connection.channel()
        self._written = self._confirmed = 0
        self._refused = False
        self._connection.call(
            channel,
            "asking for confirms",
            lambda callback: channel.confirm_delivery(self._on_confirm, callback=callback),
        )
        return channel

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        self._confirmed = max(self._confirmed, method.delivery_tag) if method.multiple else self._confirmed + 1
        self._refused = self._refused or method.NAME != "Basic.Ack"

    def _all(self, channel: Any) -> list[tuple[Note, int]]:
        found: list[tuple[Note, int]] = []
        ended: list[Any] = []

        def got(_: Any, method: Any, properties: Any, body: bytes) -> None:
            del properties
            found.append((_decode(body), method.delivery_tag))

        channel.add_callback(ended.append, [Basic.GetEmpty])
        while not ended and channel.is_open:
            before = len(found)
            channel.basic_get(self._queue, got)
            self._connection.wait(lambda: len(found) > before or ended or not channel.is_open, "reading notes")  # noqa: B023
        return found
