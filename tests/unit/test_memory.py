"""The memory backend at the seam, where a moment between two calls can be chosen."""

from __future__ import annotations

import pytest

from mqkit._clock import SystemClock
from mqkit._registry import backend_for
from mqkit._url import Url
from mqkit.backends.base import Address, Declaration, Done, Outgoing, Received
from mqkit.envelope import Envelope
from mqkit.errors import LeaseLost, NotFound

WORDS = Declaration(Address("queue", "words"))


def test_what_was_taken_from_a_deleted_queue_does_not_come_to_the_next_of_its_name():
    backend = backend_for(Url.parse("memory://deleted"), SystemClock())
    admin, publisher = backend.admin(), backend.publisher()

    def begin_with(id: str) -> None:
        admin.declare([WORDS])
        publisher.submit([Outgoing(WORDS.address, id, b"", None, {}, Envelope())])

    def take(count: int) -> list[Received]:
        return list(backend.receiver(WORDS, 10).receive(count, 0.0).deliveries)

    begin_with("before")
    first = backend.receiver(WORDS, 10)
    [held] = first.receive(10, 0.0).deliveries
    admin.delete(WORDS.address)
    begin_with("after")

    first.settle([Done(held)])
    [(refused, error)] = first.flush(1.0).refused
    with pytest.raises(NotFound):
        first.receive(10, 0.0)
    first.close()

    assert (refused, type(error)) == (held, LeaseLost)
    assert [received.id for received in take(10)] == ["after"]
    backend.close()
