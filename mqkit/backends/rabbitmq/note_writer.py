"""
Writing notes, on a connection of its own: the server stops reading from whoever publishes while it lacks memory, and on the
consumer's connection acknowledgements would stop with it. Source: https://www.rabbitmq.com/docs/memory
"""

from __future__ import annotations

import logging
import time
from typing import Any

import pika

from mqkit.backends.base import Address
from mqkit.backends.rabbitmq import names, topology
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.backends.rabbitmq.note import Note, encode
from mqkit.errors import MqkitError, Unavailable

log = logging.getLogger("mqkit")

TRIES = 2  # ways to the server that may break under what was written
AGAIN = 1.0  # seconds between two of them when nobody waits


class NoteWriter:
    """
    For one source. Connects with the first note. What is not confirmed when the connection breaks, or when the queue was
    deleted, is written again; twice is the same as once.

    Args:
        beside: The consumer's connection, which is served wherever this one is waited for.
    """

    def __init__(self, beside: Connection, address: Address) -> None:
        self._beside = beside
        self._server = beside.server
        self._address = address
        self._queue = names.notes_of(address)
        self._link: Connection | None = None
        self._channel: Any = None
        self._next = 1
        self._waiting: list[Note] = []  # for a way to the server
        self._unconfirmed: dict[int, Note] = {}  # by their numbers on the channel
        self._refused = False  # the queue is gone, or does not want them
        self._again_at = 0.0
        self._troubled = False

    @property
    def unconfirmed(self) -> set[str]:
        """Names of messages whose notes may reach the server later."""
        return {note.id for note in (*self._unconfirmed.values(), *self._waiting)}

    @property
    def lived(self) -> list[Note]:
        """Notes that may reach the server later, and that nobody else can write: a run alone has killed nobody."""
        return [note for note in (*self._unconfirmed.values(), *self._waiting) if note.lived]

    def write(self, note: Note) -> None:
        """Does not wait for the server to take it; `confirm` does."""
        self._waiting.append(note)
        self.serve()

    def serve(self) -> None:
        """Once in a while. Where there is no way to the server, a later call tries again: who works is not held up by it."""
        if self._link is not None and (self._refused or not self._channel.is_open):
            self._drop()
        if self._link is None and (not self._waiting or time.monotonic() < self._again_at):
            return
        try:
            self._send_waiting()
            self._need().step(0.0)
            self._troubled = False
        except MqkitError as exc:
            self._drop()
            if not self._troubled and self._waiting:
                self._troubled = True
                log.warning("notes.not_written", extra={"source": str(self._address), "error": str(exc)})

    def confirm(self, timeout: float | None = None, *, tries: int = TRIES) -> None:
        """
        Wait until the server has what was written. While it takes nothing for lack of memory this returns: what waits must not
        stop who works. If this process dies meanwhile it is as if nothing had been written.

        Raises:
            Unavailable: The server does not have it.
        """
        for attempt in range(tries):
            if not self._waiting and not self._unconfirmed:
                return
            try:
                self._send_waiting()
                self._need().wait(self._is_settled, "taking a note", timeout)
            except Unavailable:
                self._drop()
                if attempt + 1 == tries:
                    raise
            else:
                if self._channel.is_open and not self._waiting:
                    return
                self._drop()
        raise Unavailable(f"{self._server} did not take a note about a message of {self._address}")

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def _is_settled(self) -> bool:
        return not self._unconfirmed or self._need().blocked is not None or not self._channel.is_open

    def _need(self) -> Connection:
        assert self._link is not None
        return self._link

    def _drop(self) -> None:
        """What was under way there waits for the next way."""
        self._again_at = time.monotonic() + AGAIN
        self._waiting = [*self._unconfirmed.values(), *self._waiting]
        self._unconfirmed, self._refused = {}, False
        if self._link is not None:
            self._link.abort()
            self._link = None

    def _send_waiting(self) -> None:
        if self._link is None or not self._channel.is_open:
            self._drop()
            self._link = self._connect()
        waiting, self._waiting = self._waiting, []
        for note in waiting:
            properties = pika.BasicProperties(delivery_mode=2, message_id=str(self._next))
            self._unconfirmed[self._next] = note
            self._next += 1
            self._channel.basic_publish("", self._queue, encode(note), properties, mandatory=True)

    def _connect(self) -> Connection:
        link = Connection(self._server, meanwhile=self._beside.serve)
        try:
            Declarer(link).make(topology.notes(self._address))
            self._channel, self._next = link.channel(), 1
            self._channel.add_on_return_callback(self._returned)
            channel = self._channel
            link.call(
                channel,
                "asking for confirms",
                lambda callback: channel.confirm_delivery(self._answered, callback=callback),
            )
        except BaseException:
            link.abort()
            raise
        return link

    def _returned(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """The queue is gone. Comes before its confirm."""
        del channel, method, body
        self._refuse(int(properties.message_id))

    def _answered(self, frame: Any) -> None:
        method = frame.method
        earlier = range(min(self._unconfirmed, default=0), method.delivery_tag) if method.multiple else ()
        for number in (*earlier, method.delivery_tag):
            if method.NAME != "Basic.Ack":
                self._refuse(number)
            else:
                self._unconfirmed.pop(number, None)

    def _refuse(self, number: int) -> None:
        note = self._unconfirmed.pop(number, None)
        if note is not None:
            self._waiting.append(note)
            self._refused = True
