"""Receivers at the seam below the core, which would conclude from what is tested there."""

from __future__ import annotations

from typing import Any

from mqkit import Bus, Queue
from mqkit._topology import source_declaration
from mqkit.backends.base import Declaration, Received, Receiver
from mqkit.errors import Unavailable


def declaration_of(bus: Bus, queue: Queue[Any]) -> Declaration:
    return source_declaration(queue, None, bus.link.backend.capabilities.name)


def receiver_of(bus: Bus, queue: Queue[Any]) -> Receiver:
    return bus.link.backend.receiver(declaration_of(bus, queue), 10)


def is_lost(receiver: Receiver, room: int = 0) -> bool:
    """Was its connection found to be broken?"""
    try:
        receiver.receive(room, 0.1)
    except Unavailable:
        return True
    return False


def isolates_in_vain(receiver: Receiver, suspect: Received) -> bool:
    try:
        receiver.isolate(suspect)
    except Unavailable:
        return True
    return False
