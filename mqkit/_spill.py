"""Where publishes wait when the buffer is full and `overflow="spill"`: temporary files, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec

from mqkit._ticket import Ticket
from mqkit.backends.base import Outgoing
from mqkit.errors import BufferFull

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Outgoing)


class Spill:
    """
    First in, first out. The tickets stay in memory, the bodies do not. Whoever uses it holds its owner's lock.

    One file is read while the other is written; when the first is used up it is emptied and they change places, so the
    space they take follows what waits. They outlive a slow broker, not the process: a crash loses what is in them, as it
    loses what is in the buffer.
    """

    def __init__(self) -> None:
        self._halves: tuple[_Half, _Half] | None = None  # the one read, the one written; made by the first message
        self._busy = False

    @property
    def count(self) -> int:
        return sum(map(len, self._halves)) if self._halves is not None else 0

    @contextmanager
    def alone(self, message: Outgoing) -> Iterator[None]:
        """Raises `BufferFull` in a signal handler that has interrupted who was here: the owner's lock lets it in."""
        if self._busy:
            raise BufferFull(
                f"message {message.id} refused: this signal handler has interrupted a publish_soon that spills"
            )
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def put(self, ticket: Ticket, message: Outgoing) -> None:
        """Raises OSError when the file cannot grow; the message is not accepted then, and the others are unharmed."""
        if self._halves is None:
            self._halves = (_Half(), _Half())
        message.token = None
        self._halves[1].append(ticket, _encoder.encode(message))
        ticket.outgoing = None

    def take(self, most: int) -> list[Ticket]:
        """The oldest messages, back in memory. A ticket without one: it cannot be read any more."""
        tickets: list[Ticket] = []
        while self._halves is not None and self.count and len(tickets) < most:
            reading, writing = self._halves
            if not reading:
                reading, writing = self._halves = writing, reading
            while reading and len(tickets) < most:
                tickets.append(reading.popleft())
        return tickets

    def clear(self) -> list[Ticket]:
        """Forget everything, and who waited."""
        halves, self._halves = self._halves, None
        return [ticket for half in halves or () for ticket in half.close()]


class _Half:
    """A file that is first written, then read."""

    def __init__(self) -> None:
        import tempfile  # which brings five compression modules along, for the few who spill

        # Unbuffered: what a full disk refuses must not be in a buffer that the next write flushes.
        self._file = tempfile.TemporaryFile(prefix="mqkit-spill-", buffering=0)  # noqa: SIM115  lives as long as the pump
        self._places: deque[tuple[Ticket, int, int]] = deque()  # offset, length
        self._end = 0

    def __len__(self) -> int:
        return len(self._places)

    def append(self, ticket: Ticket, frame: bytes) -> None:
        left = memoryview(frame)
        try:
            self._file.seek(self._end)
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise
        self._places.append((ticket, self._end, len(frame)))
        self._end += len(frame)

    def popleft(self) -> Ticket:
        ticket, offset, length = self._places.popleft()
        with suppress(OSError, msgspec.MsgspecError):
            self._file.seek(offset)
            message = _decoder.decode(self._file.read(length))
            message.token = ticket
            ticket.outgoing = message
        if not self._places:
            self._end = 0
            with suppress(OSError):
                self._file.truncate(0)
        return ticket

    def close(self) -> list[Ticket]:
        self._file.close()
        return [ticket for ticket, _, _ in self._places]
