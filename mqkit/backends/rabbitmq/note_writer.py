"""
Writing notes, on a connection of its own: the server stops reading from whoever publishes while it lacks memory, and on the
consumer's connection acknowledgements would stop with it. Source: https://www.rabbitmq.com/docs/memory
"""

from __future__ import annotations

from typing import Any

import pika

from mqkit.backends.base import Address
from mqkit.backends.rabbitmq import names, topology
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.backends.rabbitmq.note import Note, encode
from mqkit.backends.rabbitmq.options import Server
from mqkit.errors import Lost, Unavailable

TRIES = 2  # ways to the server that may break under what was written


class NoteWriter:
    """
    For one source. Connects with the first note. What is not confirmed when the connection breaks, or when the queue was
    deleted, is written again; twice is the same as once.
    """

    def __init__(self, server: Server, address: Address) -> None:
        self._server = server
        self._address = address
        self._queue = names.notes_of(address)
        self._link: Connection | None = None
        self._channel: Any = None
        self._next = 1
        self._unconfirmed: dict[int, Note] = {}  # by their numbers on the channel
        self._refused: list[Note] = []  # they came back, or the server did not want them

    @property
    def unconfirmed(self) -> set[str]:
        """Ids of messages whose notes may reach the server later."""
        return {note.id for note in (*self._unconfirmed.values(), *self._refused)}

    def write(self, note: Note) -> None:
        """Does not wait for the server to take it; `confirm` does. Raises `Unavailable` if there is no way to it."""
        if self._link is None:
            self._again()
        self._send(note)
        self.serve()

    def serve(self) -> None:
        """Once in a while. Does not wait, unless the connection broke under what was written; then as `write`."""
        if self._link is None:
            return
        try:
            self._link.step(0.0)
            if self._channel.is_open and not self._refused:
                return
        except Lost:
            pass
        if self._unconfirmed or self._refused:
            self._again()
        else:
            self._drop()

    def confirm(self, timeout: float | None = None) -> None:
        """
        Wait until the server has what was written. While it takes nothing for lack of memory this returns: what waits must not
        stop who works. If this process dies meanwhile it is as if nothing had been written.

        Raises:
            Unavailable: The server does not have it.
        """
        for _ in range(TRIES):
            if self._link is None:
                if not self._unconfirmed and not self._refused:
                    return
                self._again()
            try:
                self._need().wait(self._is_settled, "taking a note", timeout)
            except Lost:
                pass
            else:
                if self._channel.is_open and not self._refused:
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
        if self._link is not None:
            self._link.abort()
            self._link = None

    def _again(self) -> None:
        self._drop()
        self._link = self._connect()
        notes = [*self._unconfirmed.values(), *self._refused]
        self._unconfirmed, self._refused, self._next = {}, [], 1
        for note in notes:
            self._send(note)

    def _connect(self) -> Connection:
        link = Connection(self._server)
        try:
            Declarer(link).make(topology.notes(self._address))
            self._channel = channel = link.channel()
            channel.add_on_return_callback(self._returned)
            link.call(
                channel,
                "asking for confirms",
                lambda callback: channel.confirm_delivery(self._answered, callback=callback),
            )
        except BaseException:
            link.abort()
            raise
        return link

    def _send(self, note: Note) -> None:
        properties = pika.BasicProperties(delivery_mode=2, message_id=str(self._next))
        self._channel.basic_publish("", self._queue, encode(note), properties, mandatory=True)
        self._unconfirmed[self._next] = note
        self._next += 1

    def _returned(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        """Comes before its confirm."""
        del channel, method, body
        self._refused.append(self._unconfirmed.pop(int(properties.message_id)))

    def _answered(self, frame: Any) -> None:
        method = frame.method
        earlier = range(min(self._unconfirmed, default=0), method.delivery_tag) if method.multiple else ()
        for number in (*earlier, method.delivery_tag):
            note = self._unconfirmed.pop(number, None)
            if note is not None and method.NAME != "Basic.Ack":
                self._refused.append(note)
