"""
pika's connection, which does by the batch what pika does frame by frame. The private names of pika that mqkit uses are here,
and in `connection.py` `_output_marshaled_frames`, `_transport._sock` and `_waking_mutex`.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import sys
from collections.abc import Sequence
from typing import Any

import pika
from pika import frame

from mqkit.backends.rabbitmq import deliveries

if sys.platform != "win32":
    from fcntl import ioctl
    from termios import TIOCOUTQ

log = logging.getLogger("mqkit")

READ = 65_536  # bytes taken from the socket at once; pika's 4,096 are four messages

_SelectConnection: Any = pika.SelectConnection  # pika has no types


class Stream(_SelectConnection):  # type: ignore[misc]
    """
    What is sent goes into the socket in one write. A delivery whose frames have all arrived is decoded in one go, and any
    other frame by pika.
    """

    held: list[bytes] | None = None
    _frame_buffer: bytes

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        if self.held is not None:
            self.held.extend(marshaled_frames)
        elif marshaled_frames:
            super()._output_marshaled_frames([b"".join(marshaled_frames)])

    def unsent(self) -> int:
        """Bytes of `bytes_sent` that the other machine has not taken; where the system does not tell, those that this one has not."""
        waiting: int = self._transport.get_write_buffer_size()
        if sys.platform != "win32":
            with contextlib.suppress(OSError, ValueError):  # the system does not tell, or the socket is closed
                waiting += struct.unpack("i", ioctl(self._transport._sock, TIOCOUTQ, bytes(4)))[0]
        return waiting

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = READ
        super()._proto_connection_made(transport)

    def _on_data_available(self, data_in: bytes) -> None:
        if not (deliveries.SOUND and self.is_open):
            super()._on_data_available(data_in)
            return
        data, at = self._frame_buffer + data_in, 0
        self.bytes_received += len(data_in)  # now: a slow link that still brings something is alive
        try:
            # What is called back must not step the loop, which would come here again.
            while self.is_open:
                try:
                    delivery = deliveries.read(data, at)
                except deliveries.Incomplete:
                    break
                if delivery is not None:
                    at = delivery.end
                    self.frames_received += 3
                    self._deliver(delivery)
                    continue
                size = deliveries.size(data, at)
                if size is None:
                    break
                decoded = decoded_frame(data, at, size)
                at += size
                self._process_frame(decoded)
        finally:
            self._frame_buffer = data[at:]
        if not self.is_open:  # closing or closed, and pika counts the rest once more, which harms nobody
            super()._on_data_available(b"")

    def _deliver(self, delivery: deliveries.Delivery) -> None:
        number, method, properties, body, _ = delivery
        channel = self._channels.get(number)
        if channel is not None:
            content = frame.Header(number, len(body), properties)
            channel._on_deliver(frame.Method(number, method), content, body)


def decoded_frame(data: bytes, at: int, size: int) -> Any:
    """
    By pika, whose decoder fails with many an error on a header that it does not know, that is not a number or is a year too far.
    Then without the headers: the message would come again and end every connection that it comes to.
    """
    try:
        return frame.decode_frame(data[at : at + size])[1]
    except Exception as exc:
        bare = deliveries.without_headers(data, at)
        if bare is None:
            raise
        log.warning("message.headers_unreadable", extra={"error": repr(exc)})
        return bare
