"""Where publishes wait when the buffer is full and `overflow="spill"`: a temporary file, in order."""

from __future__ import annotations

import threading
from collections import deque

import msgspec

from mqkit._ticket import Ticket
from mqkit.backends.base import Outgoing


class Spill:
    """
    A first-in first-out file of messages. The tickets stay in memory, the bodies do not.

    It outlives a slow broker, not the process: a crash loses what is in it, as it loses what is in the buffer.
    """

    def __init__(self) -> None:
        import tempfile  # which brings five compression modules along, for the few who spill

        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile(prefix="mqkit-spill-")  # noqa: SIM115  lives as long as the pump
        self._waiting: deque[tuple[Ticket, int, int]] = deque()  # ticket, offset, length
        self._end = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Outgoing)

    @property
    def count(self) -> int:
        return len(self._waiting)

    def put(self, ticket: Ticket, message: Outgoing) -> None:
        """Raises OSError when the file cannot grow; the message is not accepted then."""
        message.token = None
        frame = self._encoder.encode(message)
        with self._lock:
            self._file.seek(self._end)
            self._file.write(frame)
            self._waiting.append((ticket, self._end, len(frame)))
            self._end += len(frame)
        ticket.outgoing = None

    def take(self, most: int) -> list[Ticket]:
        """The oldest messages, back in memory."""
        tickets: list[Ticket] = []
        with self._lock:
            while self._waiting and len(tickets) < most:
                ticket, offset, length = self._waiting.popleft()
                self._file.seek(offset)
                message = self._decoder.decode(self._file.read(length))
                message.token = ticket
                ticket.outgoing = message
                tickets.append(ticket)
            if not self._waiting:
                self._file.truncate(0)
                self._end = 0
        return tickets

    def close(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._file.close()
