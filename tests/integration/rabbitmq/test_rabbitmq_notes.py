"""The notes beside a queue, which several consumers read at the same moment."""

from __future__ import annotations

import threading
import uuid

import pytest

from mqkit._url import Url, parse_options
from mqkit.backends.base import Address
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.notes import Note, Notes
from mqkit.backends.rabbitmq.options import RabbitOptions, Server
from tests.rabbit_server import RabbitHarness

pytestmark = pytest.mark.slow

NOTES, READS = 50, 10


def test_those_who_read_at_the_same_moment_hide_nothing_from_each_other(harness: RabbitHarness) -> None:
    url = Url.parse(f"amqp://127.0.0.1:{harness.server.process.port}/{harness.vhost}")
    server = Server.of(url, parse_options(RabbitOptions, url))
    address = Address("queue", f"noted-{uuid.uuid4()}")
    ids = {str(number) for number in range(NOTES)}
    seen: list[set[str]] = []

    def read() -> None:
        connection = Connection(server)
        try:
            notes = Notes(connection, address)
            for _ in range(READS):
                seen.append(set(notes.read()))
        finally:
            connection.close()

    writer = Connection(server)
    try:
        notes = Notes(writer, address)
        for id in ids:
            notes.write(Note(id, alone=1))
        notes.confirm()
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60.0)
    finally:
        writer.close()

    assert seen == [ids] * 3 * READS
