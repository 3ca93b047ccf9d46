"""
Notes about messages that run alone, in a queue beside their source.

A count of hand-outs cannot tell the message that kills its process from its neighbours. Before the core runs a suspect with
nothing else in hand, a note with its id is published and confirmed; the verdict removes it. A note that is still there
when the message comes again says that it died alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import pika

from mqkit.backends.base import Address
from mqkit.backends.rabbitmq import names, topology
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.declare import Declarer
from mqkit.errors import NotFound, Unavailable


class Suspects:
    """The notes of one source. Blocking, bounded by the connection's patience."""

    def __init__(self, connection: Connection, address: Address) -> None:
        self._connection = connection
        self._address = address
        self._queue = names.suspects_of(address)
        self._declarer = Declarer(connection)
        self._noted: set[str] = set()  # ids with notes, as far as this process knows

    def solo(self) -> Counter[str]:
        """How many notes there are, by message id."""
        try:
            if not self._declarer.count(self._queue)[0]:
                return Counter()
        except NotFound:
            return Counter()
        channel = self._connection.channel()
        found = Counter(id for id, _ in self._all(channel))
        channel.close()  # gives them back
        self._noted.update(found)
        return found

    def note(self, id: str) -> None:
        """Raises `Unavailable` when the server does not confirm it."""
        self._declarer.make(topology.suspects(self._address))
        channel = self._connection.channel()
        answers: list[Any] = []
        self._connection.call(
            channel, "asking for confirms", lambda callback: channel.confirm_delivery(answers.append, callback=callback)
        )
        channel.basic_publish("", self._queue, id.encode(), pika.BasicProperties(delivery_mode=2), mandatory=True)
        self._connection.wait(lambda: answers or not channel.is_open, "noting that a message runs alone")
        if not answers or answers[0].method.NAME != "Basic.Ack":
            raise Unavailable(f"{self._connection.server} did not take the note that message {id} runs alone")
        channel.close()
        self._noted.add(id)

    def clear(self, ids: Collection[str]) -> None:
        """These have their verdicts."""
        known = self._noted.intersection(ids)
        if not known:
            return
        channel = self._connection.channel()
        for id, tag in self._all(channel):
            if id in known:
                channel.basic_ack(tag)
        self._connection.barrier(channel)
        channel.close()
        self._noted -= known

    def _all(self, channel: Any) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        while True:
            answer: list[Any] = []
            empty: list[Any] = []

            def got(_: Any, method: Any, properties: Any, body: bytes, answer: list[Any] = answer) -> None:
                del properties
                answer.append((body.decode(errors="replace"), method.delivery_tag))

            channel.add_callback(empty.append, [pika.spec.Basic.GetEmpty])
            channel.basic_get(self._queue, got)
            self._connection.wait(lambda: answer or empty or not channel.is_open, "reading the notes about suspects")
            if not answer:
                return found
            found += answer
