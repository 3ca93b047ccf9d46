"""The notes beside a queue, which several consumers read at the same moment."""

from __future__ import annotations

import threading
import uuid

import pytest

from mqkit._url import Url, parse_options
from mqkit.backends.base import Address
from mqkit.backends.rabbitmq import names
from mqkit.backends.rabbitmq.connection import Connection
from mqkit.backends.rabbitmq.note import Note
from mqkit.backends.rabbitmq.notes import Notes
from mqkit.backends.rabbitmq.options import RabbitOptions, Server
from tests.rabbit_server import RabbitHarness

pytestmark = pytest.mark.slow

NOTES, READS = 50, 10


def server_of(harness: RabbitHarness) -> Server:
    url = Url.parse(f"amqp://127.0.0.1:{harness.server.process.port}/{harness.vhost}?patience=60")
    return Server.of(url, parse_options(RabbitOptions, url))


def test_those_who_read_at_the_same_moment_hide_nothing_from_each_other(harness: RabbitHarness) -> None:
    server, address = server_of(harness), Address("queue", f"noted-{uuid.uuid4()}")
    ids = {str(number) for number in range(NOTES)}
    seen: list[set[str]] = []

    def read() -> None:
        connection = Connection(server)
        try:
            notes = Notes(connection, address, [])
            for _ in range(READS):
                seen.append(set(notes.read()))
        finally:
            connection.close()

    writer = Connection(server)
    try:
        notes = Notes(writer, address, [])
        for id in ids:
            notes.write(Note(id, alone="a run"))
        notes.confirm()
        notes.close([])
        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60.0)
    finally:
        writer.close()

    assert seen == [ids] * 3 * READS


def test_what_is_written_while_the_queue_is_deleted_or_the_connection_breaks_is_written_again(
    harness: RabbitHarness,
) -> None:
    server, address = server_of(harness), Address("queue", f"noted-{uuid.uuid4()}")
    reader = Connection(server)
    notes = Notes(reader, address, [])
    try:
        notes.write(Note("first", attempt=2))
        notes.confirm()
        channel = reader.channel()
        reader.call(channel, "deleting", channel.queue_delete, queue=names.notes_of(address))
        notes.write(Note("second", attempt=2))
        notes.confirm()
        after_the_queue = set(notes.read())
        harness.wait(lambda: harness.settled_connections() == 2)
        assert harness.kill_connections() == 2
        notes.write(Note("third", attempt=2))
        notes.confirm()
        notes.close([])
    finally:
        reader.close()
    reader = Connection(server)
    try:
        after_the_connection = set(Notes(reader, address, []).read())
    finally:
        reader.close()

    assert after_the_queue == {"second"}
    assert after_the_connection == {"second", "third"}
