"""
One AMQP connection, stepped by the thread that owns it. Every wait has a bound.

Private names of pika are used by `stream.py`, and here `_output_marshaled_frames` to write a batch at once,
`_transport._sock` to drop a connection without farewell and `_waking_mutex` to be woken out of signal handlers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pika.adapters.select_connection import IOLoop

from mqkit.backends.rabbitmq.errors import refusal, translate
from mqkit.backends.rabbitmq.options import Server
from mqkit.backends.rabbitmq.stream import Stream
from mqkit.errors import Lost, MqkitError, Unavailable

SILENCE = 3.0  # seconds without a byte from the server after which it is asked whether it lives
ANSWER = 2.0  # ... and seconds it has for the answer, or for the next bytes of a long upload before it
UPLOAD = 4_096  # bytes on their way that may take long
AT_ONCE = 16  # acknowledgements a queue takes without letting others wait
PACE = 0.005  # seconds it has for them before the next ones
FAREWELL = 1.0  # seconds a polite close may take


class Connection:
    """
    Connects at once.

    Args:
        meanwhile: Called at least ten times a second wherever this connection is waited for, and by nobody else.

    Raises:
        Unavailable, Denied, NotFound, ConfigError: No server would have us.
    """

    def __init__(self, server: Server, *, meanwhile: Callable[[], None] | None = None) -> None:
        self.server = server
        self._meanwhile = meanwhile
        self._pid = os.getpid()
        self._loop: Any = IOLoop()
        self._loop.activate_poller()
        # A signal may interrupt `wake` where it holds this, and its handler publish.
        self._loop._poller._waking_mutex = threading.RLock()
        self._woken = False
        self._closed_by: BaseException | None = None
        self._closing = False
        self._probed_at: float | None = None
        self._heard = 0
        self._heard_at = time.monotonic()
        self._unsent = self._taken = 0  # when it was asked, see `Stream`
        self.blocked: str | None = None
        try:
            self._pika = self._connect()
            self._pika.add_on_close_callback(self._on_close)
            self._pika.add_on_connection_blocked_callback(self._on_blocked)
            self._pika.add_on_connection_unblocked_callback(self._on_unblocked)
            self._control = self.channel()
        except BaseException:
            self.abort()
            raise

    @property
    def version(self) -> tuple[int, ...]:
        """Of the server; () if it does not say."""
        text = str((self._pika.server_properties or {}).get("version", ""))
        return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())

    @property
    def frame_max(self) -> int:
        return int(self._pika.params.frame_max or 131_072)

    @property
    def broken(self) -> bool:
        return self._closed_by is not None or not self._pika.is_open

    # -- waiting -----------------------------------------------------------------------------------------------------

    def step(self, timeout: float) -> None:
        """
        Serve the connection until something happens, `wake` was called, or the timeout.

        Raises:
            Lost: The connection is gone, or the server does not answer a probe.
        """
        if self._woken:
            timeout = 0.0
        self._poll(max(0.0, timeout))
        self._woken = False
        if self._closed_by is not None:
            raise self.lost()
        self._look_whether_it_lives()

    def wait(self, condition: Callable[[], Any], what: str, timeout: float | None = None) -> None:
        """
        Step until the condition holds.

        Raises:
            Unavailable: It does not within `timeout` seconds, or the server's usual patience.
        """
        deadline = time.monotonic() + (self.server.options.patience if timeout is None else timeout)
        woken = self._woken
        while not condition():
            if self._closed_by is not None:
                raise self.lost()
            left = deadline - time.monotonic()
            if left <= 0:
                raise Unavailable(f"{self.server} did not answer in time: {what}")
            self._wait_a_little(min(left, 1.0))
            woken = woken or self._woken
        self._woken = woken  # whoever called `wake` meant the next step

    def pause(self, seconds: float) -> None:
        """Serve the connection for so long. Raises `Lost`."""
        over = time.monotonic() + seconds
        while (left := over - time.monotonic()) > 0:
            if self._closed_by is not None:
                raise self.lost()
            self._poll(left)

    def serve(self) -> None:
        """Answer the server's heartbeats and take what has come, without waiting. What is wrong, the next `step` says."""
        if self._closed_by is None:
            self._poll(0.0)

    def wake(self) -> None:
        """From any thread, latched: the next `step` returns at once."""
        self._loop.add_callback_threadsafe(self._on_wake)

    def alive(self) -> None:
        """Ask the server and wait for its answer. Raises `Lost`."""
        try:
            self.barrier(self._control, ANSWER)
        except Unavailable as exc:
            self.abort()
            raise exc if isinstance(exc, Lost) else Lost(f"{self.server} is silent") from exc

    def barrier(self, channel: Any, timeout: float | None = None) -> None:
        """Until everything sent on this channel before was taken by the server: it answers in order."""
        self.call(channel, "asking for an answer", channel.basic_qos, timeout=timeout)

    def call(
        self, channel: Any, what: str, method: Callable[..., Any], timeout: float | None = None, **kwargs: Any
    ) -> Any:
        """
        One request on an open channel and its answer.

        Raises:
            NotFound, Denied, TopologyMismatch, ...: The server closed the channel because of it.
            Unavailable, Lost: No answer.
        """
        if self._closed_by is not None:  # `serve` has heard so, and raises nothing
            raise self.lost()
        if not channel.is_open:
            raise refusal(closing_reason(channel), what)
        answer: list[Any] = []
        method(callback=answer.append, **kwargs)
        self.wait(lambda: answer or not channel.is_open, what, timeout)
        if answer:
            return answer[0].method
        raise refusal(closing_reason(channel), what)

    def channel(self) -> Any:
        """A new channel, open. `closing_reason` of it says later why it is not."""
        opened: list[Any] = []
        channel = self.open_channel(opened.append)
        self.wait(lambda: opened or channel.is_closed, "opening a channel")
        if not opened:
            raise translate(closing_reason(channel), self.server)
        return channel

    def open_channel(self, on_open: Callable[[Any], None]) -> Any:
        """As `channel`, without waiting for it."""
        if self._closed_by is not None:
            raise self.lost()
        channel = self._pika.channel(on_open_callback=on_open)
        channel.add_on_close_callback(_remember_reason)
        return channel

    # -- writing -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is sent within travels in one write at the end."""
        wire = self._pika
        held: list[bytes] = []
        wire.held = held
        try:
            yield
        finally:
            wire.held = None
            if held and self._closed_by is None:
                wire._output_marshaled_frames(held)

    def write(self, frames: bytes) -> None:
        """Frames that were encoded elsewhere, of a channel that is open."""
        self._pika._output_marshaled_frames((frames,))

    # -- settling ----------------------------------------------------------------------------------------------------

    def acknowledge(self, channel: Any, acknowledgements: Sequence[tuple[int, bool]], *, patiently: bool) -> None:
        """
        Each as (tag, multiple).

        Patiently: a quorum queue takes some 32 commands of a channel at once. Later ones wait in the channel and are
        forgotten if it is closed meanwhile. Source: rabbit_fifo_client.erl, SOFT_LIMIT.
        """
        at_once = AT_ONCE if patiently else max(1, len(acknowledgements))
        for first in range(0, len(acknowledgements), at_once):
            if first:
                self.barrier(channel)
                self.step(PACE)
            with self.together():
                for tag, multiple in acknowledgements[first : first + at_once]:
                    channel.basic_ack(tag, multiple)

    def cancel(self, channel: Any, consumers: Sequence[str]) -> None:
        """The answers come when the queues have carried out the acknowledgements before."""
        answers: list[Any] = []
        for tag in consumers:
            channel.basic_cancel(tag, callback=answers.append)
        self.wait(lambda: len(answers) == len(consumers) or not channel.is_open, "cancelling")

    # -- ending ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Politely, at most a second. The server then gives back what was not settled."""
        if self._closing or os.getpid() != self._pid:
            return
        self._closing = True
        if self._closed_by is None and self._pika.is_open and self.blocked is None:
            with contextlib.suppress(MqkitError):  # a farewell that is not answered is none of our business
                self._pika.close()
                deadline = time.monotonic() + FAREWELL
                while self._closed_by is None and time.monotonic() < deadline:
                    self._poll(0.1)
        self._closing = False
        self.abort()

    def abort(self) -> None:
        """
        Drop the socket without a word. What was not settled returns to its place before anybody else gets any of it,
        which a polite close does not do for queues with a single active consumer.
        """
        if self._closing or os.getpid() != self._pid:
            return
        self._closing = True
        transport = getattr(getattr(self, "_pika", None), "_transport", None)
        if transport is not None and self._closed_by is None:
            with contextlib.suppress(OSError):  # it is gone already
                transport._sock.shutdown(socket.SHUT_RDWR)
            transport._sock.close()
        if self._closed_by is None:
            self._closed_by = Lost(f"{self.server}: the connection was closed here")
        # pika is not told: nobody steps it any more, and it would log this as an error.
        with contextlib.suppress(OSError):
            self._loop.deactivate_poller()
        self._loop.close()

    def lost(self) -> MqkitError:
        """Why there is no connection any more, always as `Lost`."""
        reason = self._closed_by or Lost(f"{self.server}: nobody waits for its answer any more")
        error = reason if isinstance(reason, MqkitError) else translate(reason, self.server)
        return error if isinstance(error, Lost) else _as_lost(error)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _connect(self) -> Any:
        done: list[Any] = []
        parameters = self.server.parameters()
        workflow = Stream.create_connection(parameters, on_done=done.append, custom_ioloop=self._loop)
        deadline = time.monotonic() + (self.server.options.connect + 0.5) * len(parameters)
        while not done:
            if time.monotonic() > deadline:
                workflow.abort()
                deadline = float("inf")  # it answers with an error, at once
            self._wait_a_little(0.1)
        if isinstance(done[0], BaseException):
            raise translate(done[0], self.server)
        return done[0]

    def _wait_a_little(self, timeout: float) -> None:
        if self._meanwhile is None:
            self._poll(timeout)
        else:
            self._poll(min(timeout, 0.1))
            self._meanwhile()

    def _poll(self, timeout: float) -> None:
        timer = self._loop.call_later(timeout, _nothing)
        self._loop.poll()
        self._loop.process_timeouts()
        self._loop.remove_timeout(timer)

    def _look_whether_it_lives(self) -> None:
        heard, now = self._pika.bytes_received, time.monotonic()
        if heard != self._heard or self.blocked:  # a blocked connection is not read, so a probe would not be answered
            self._heard, self._heard_at, self._probed_at = heard, now, None
        elif self._probed_at is None:
            if now - self._heard_at > SILENCE:
                self._control.basic_qos(callback=_ignore)
                self._poll(0.0)  # out with it, for the next step may be long in coming
                if self._closed_by is not None:
                    raise self.lost()
                self._give_time(now)
        elif now - self._probed_at > ANSWER:
            unsent, taken = self._unsent, self._taken
            self._give_time(now)
            if unsent < UPLOAD or self._taken <= taken:
                self.abort()
                raise Lost(f"{self.server} is silent for {now - self._heard_at:.0f} s and does not answer")

    def _give_time(self, now: float) -> None:
        """The question stands behind what is on its way."""
        self._probed_at = now
        self._unsent = self._pika.unsent()
        self._taken = self._pika.bytes_sent - self._unsent

    def _on_wake(self) -> None:
        self._woken = True

    def _on_close(self, _: Any, reason: BaseException) -> None:
        self._closed_by = reason

    def _on_blocked(self, _: Any, frame: Any) -> None:
        self.blocked = f"{self.server} takes nothing at present: {frame.method.reason}"

    def _on_unblocked(self, _: Any, frame: Any) -> None:
        del frame
        self.blocked = None


_REASON = "mqkit_closing_reason"


def _remember_reason(channel: Any, reason: BaseException) -> None:
    setattr(channel, _REASON, reason)


def closing_reason(channel: Any) -> BaseException:
    """Why a channel is closed."""
    reason: BaseException = getattr(channel, _REASON, None) or Lost("the channel was closed")
    return reason


def _as_lost(error: MqkitError) -> Lost:
    lost = Lost(str(error))
    lost.__cause__ = error.__cause__
    return lost


def _nothing() -> None: ...


def _ignore(frame: Any) -> None:
    del frame
