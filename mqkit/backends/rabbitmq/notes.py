"""
Notes about messages that stay unacknowledged, in a queue beside their source.

AMQP lets nobody write on a message that is kept in its place. Two things have to outlive its holder all the same: that it
is about to run alone, because a count of hand-outs cannot tell the message that kills its process from its neighbours; and
with order by key the number of its next attempt, with the wait before it. A verdict removes the notes. One that is left
over because its process died right after the verdict is dropped by the server after a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pika.spec import Basic

from mqkit.backends.base import Address, Received
from mqkit.backends.rabbitmq import names
from mqkit.backends.rabbitmq.connection import FAREWELL, Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.backends.rabbitmq.note import Note, Noted, note_of, together
from mqkit.backends.rabbitmq.note_writer import NoteWriter
from mqkit.errors import Lost, MqkitError, NotFound, Unavailable

TIDY = 1.0  # seconds between two rounds of removing what is over
LOOK = 0.05  # seconds between two looks whether others have ended their turn


_CLASSIC = {"x-queue-type": "classic"}  # whatever kind the vhost prefers


class Notes:
    """
    The notes of one source, read on its consumer's connection. Blocking, each step bounded by the connection's patience.

    Args:
        unsaid: What consumers of this source in this process could not tell the server any more: that runs alone have killed
            nobody. It is told as soon as there is a way, by whichever of them is served.
    """

    def __init__(self, connection: Connection, address: Address, unsaid: list[Note]) -> None:
        self._connection = connection
        self._address = address
        self._queue = names.notes_of(address)
        self._declarer = Declarer(connection)
        self._writer = NoteWriter(connection, address)
        self._known: set[str] = set()  # ids with notes, as far as this process knows
        self._alone: dict[str, str] = {}  # names of those that run alone, or ran, with the run if it is ours
        self._over: set[str] = set()
        self._tidied = time.monotonic()
        self._unsaid = unsaid
        self._told: list[Note] = []  # of these, what is written here

    def read(self) -> dict[str, Noted]:
        """By the names that `name_of` gives messages."""
        try:
            self._declarer.count(self._queue)  # is there one? What is in it, only reading it tells
        except NotFound:
            return {}
        with self._turn(self._connection.server.options.patience) as channel:
            found = together([*(note for note, _ in self._all(channel)), *self._writer.lived, *self._unsaid])
        self._known.update(found)
        for name, noted in found.items():
            if noted.solo:
                self._alone.setdefault(name, "")
        return found

    def write(self, note: Note) -> None:
        """As `NoteWriter.write`."""
        self._known.add(note.id)
        self._over.discard(note.id)
        self._writer.write(note)

    def isolate(self, received: Received) -> None:
        """It is about to run alone. Raises as `confirm`."""
        name, run = name_of(received), secrets.token_hex(4)
        self._alone[name] = run
        self.write(Note(name, alone=run))
        self.confirm()

    def serve(self) -> None:
        """As `NoteWriter.serve`."""
        if self._unsaid:
            self._tell()
        self._writer.serve()

    def _tell(self) -> None:
        under_way = self._writer.lived
        for note in tuple(self._unsaid):
            if note not in self._told:
                self._told.append(note)
                self._writer.write(note)
            elif note not in under_way:
                with contextlib.suppress(ValueError):  # another consumer was as fast
                    self._unsaid.remove(note)

    def confirm(self, timeout: float | None = None) -> None:
        """As `NoteWriter.confirm`."""
        self._writer.confirm(timeout)

    def close(self, given_back: Sequence[Received]) -> None:
        """
        Those that are given back while they run alone have killed nobody, and whoever has them next must know: their notes
        are removed, or where the connection that reads them is broken, what is noted says so.
        """
        for received in given_back:
            self.over(received)
        lived = [Note(name, lived=run) for name in sorted(self._over) if (run := self._alone.get(name))]
        with contextlib.suppress(MqkitError):  # the next consumer reads what is under way, if it is soon enough
            self._writer.confirm(FAREWELL, tries=1)
        if lived and not self._connection.broken:
            with contextlib.suppress(MqkitError):
                self.tidy(now=True)
                lived = [note for note in lived if note.id in self._over]
        if self._connection.broken:
            for note in lived:
                self._writer.write(note)
            if lived:
                with contextlib.suppress(MqkitError):
                    self._writer.confirm(FAREWELL, tries=1)
            lived = []
        self._unsaid += [note for note in (*lived, *self._writer.lived) if note not in self._unsaid]
        self._writer.close()

    def released(self, received: Received, note: Note | None) -> None:
        """It stays in its place. A verdict or having survived alone ends what was noted; a new note, if any, takes its place."""
        if self._alone and name_of(received) in self._alone and (note is not None or not received.solo):
            self.over(received)
            self.tidy(now=True)
            if note is None and received.attempt > 1 and has_id(received):
                note = Note(received.id, attempt=received.attempt, since=received.since)
        if note is not None:
            self.write(note)

    def over(self, received: Received) -> None:
        """It has its verdict, or is given back by who lives."""
        if self._known and (name := name_of(received)) in self._known:
            run = self._alone.get(name)
            if run and name in self._writer.unconfirmed:
                # That it runs alone is on its way to the server and cannot be removed there yet; this follows it.
                self._writer.write(Note(name, lived=run))
            self._over.add(name)

    def tidy(self, *, now: bool) -> None:
        """Remove what is over: at once, or when it is time to."""
        if not self._over or not (now or time.monotonic() - self._tidied > TIDY):
            return
        self._tidied = time.monotonic()
        over = self._over - self._writer.unconfirmed  # those may arrive after we have looked
        if not over:
            return
        with self._turn(self._connection.server.options.patience if now else 0.0) as channel:
            for note, tag in self._all(channel):
                if note.id in over:
                    channel.basic_ack(tag)
        self._known -= over
        for name in over:
            self._alone.pop(name, None)
        self._over -= over

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

    def _all(self, channel: Any) -> list[tuple[Note, int]]:
        found: list[tuple[Note | None, int]] = []
        ended: list[Any] = []

        def got(_: Any, method: Any, properties: Any, body: bytes) -> None:
            del properties
            found.append((note_of(body), method.delivery_tag))

        channel.add_callback(ended.append, [Basic.GetEmpty])
        while not ended and channel.is_open:
            before = len(found)
            channel.basic_get(self._queue, got)
            self._connection.wait(lambda: len(found) > before or ended or not channel.is_open, "reading notes")  # noqa: B023
        for note, tag in found:
            if note is None and channel.is_open:  # somebody else's, which says nothing
                channel.basic_ack(tag)
        return [(note, tag) for note, tag in found if note is not None]


def name_of(received: Received) -> str:
    """
    What a message is called in notes: its id. One that came without has another id at every hand-out, and is called by what it
    says; if there are several of them, one kills as well as the other.
    """
    if has_id(received):
        return received.id
    native = received.native
    text = f"{native.exchange}\n{native.routing_key}\n".encode()
    return hashlib.sha256(text + received.body).hexdigest()


def has_id(received: Received) -> bool:
    """Of its own, which is the same at every hand-out."""
    return bool(received.native.properties.message_id)
