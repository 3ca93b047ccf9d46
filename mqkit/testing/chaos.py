"""FaultProxy: a TCP proxy that breaks connections when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
import threading
from collections.abc import Coroutine
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from mqkit.errors import Closed, TimedOut

R = TypeVar("R")

CHUNK = 65536  # bytes read at once
CALL = 10.0  # seconds one call into the proxy's thread may take
CONNECT = 5.0  # seconds to reach the target


class FaultProxy:
    """
    Passes bytes between clients and one target, in a thread of this process, until it is told to misbehave.

        with FaultProxy("127.0.0.1", 5672) as proxy:
            connect(proxy.host, proxy.port)
            proxy.reset()

    Its address never changes, also while the target is away or moves. Every method may be called from any thread, and
    has taken effect when it returns. It costs 0.2 to 0.4 ms a round trip.

    Args:
        host: Of the target.
        port: Of the target.
        at: The proxy's own port, for a system that tells its clients where to find it; 0 for any that is free.
    """

    def __init__(self, host: str, port: int, *, at: int = 0) -> None:
        self._target = (host, port)
        self._requests, self._replies = _Way(), _Way()
        self._delay, self._rate = 0.0, 0.0
        self._to_reset = 0
        self._accepted = 0
        self._carried: dict[asyncio.Task[None], _Pair] = {}
        # Bound and never listening, this one keeps the port ours while connections are refused.
        self._place = _bound(at)
        self.host: str = "127.0.0.1"
        self.port: int = self._place.getsockname()[1]
        self._listener: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="mqkit-fault-proxy", daemon=True)
        self._closed = False
        self._thread.start()
        self.accept()

    def through(self, url: str) -> str:
        """The same URL with the address of this proxy."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}{self.host}:{self.port}"))

    # -- connections that are open -------------------------------------------------------------------------------------

    def reset(self) -> None:
        """RST to both sides of every open connection: the peer crashed."""
        self._call(self._end(reset=True))

    def close_connections(self) -> None:
        """FIN to both sides of every open connection: the peer closed in good order."""
        self._call(self._end(reset=False))

    def freeze(self) -> None:
        """Pass no byte either way, on old and new connections, which stay open: the peer hangs. Until `thaw`."""
        self._call(self._set_passing(requests=False, replies=False))

    def freeze_replies(self) -> None:
        """
        Pass requests and hold the answers back until `thaw`.

        Followed by `reset`, the answers are lost: the broker has done the work and nobody was told.
        """
        self._call(self._set_passing(requests=True, replies=False))

    def thaw(self) -> None:
        """Pass everything again, also what was held back."""
        self._call(self._set_passing(requests=True, replies=True))

    def cut_after(self, size: int) -> None:
        """Let `size` more bytes pass to the target, then reset their connection: a request torn in the middle. Once."""
        self._call(self._set_cut(self._requests, size))

    def cut_replies_after(self, size: int) -> None:
        """The same for bytes that come from the target."""
        self._call(self._set_cut(self._replies, size))

    def slow(self, *, delay: float = 0.0, rate: float = 0.0) -> None:
        """
        Be slow, on old and new connections; `slow()` ends it.

        Args:
            delay: Seconds that each chunk of up to 64 KiB waits, each way.
            rate: Bytes a second of each connection, each way; 0 for no limit.
        """
        self._call(self._set_pace(delay, rate))

    # -- new connections -----------------------------------------------------------------------------------------------

    def refuse(self) -> None:
        """Refuse new connections until `accept`; open ones go on, `reset` ends them."""
        self._call(self._unlisten())

    def accept(self) -> None:
        """Take new connections again."""
        self._call(self._listen())

    def reset_next(self, count: int = 1) -> None:
        """Take the next `count` connections and reset each at once."""
        self._call(self._set_to_reset(count))

    def retarget(self, host: str, port: int) -> None:
        """New connections lead there: the broker came back at another address."""
        self._call(self._set_target(host, port))

    # -- what happened -------------------------------------------------------------------------------------------------

    @property
    def accepted(self) -> int:
        """Connections taken so far, also those that were reset at once."""
        return self._accepted

    @property
    def open_connections(self) -> int:
        return len(self._carried)

    @property
    def request_bytes(self) -> int:
        """Bytes handed on to the target so far, or being handed on."""
        return self._requests.passed

    @property
    def reply_bytes(self) -> int:
        """Bytes handed on to clients so far, or being handed on."""
        return self._replies.passed

    # -- life ----------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Reset every connection and free the port. Safe to call twice."""
        if self._closed:
            return
        self._call(self._unlisten())
        self.reset()
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL)
        self._loop.close()
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside the thread ---------------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, R]) -> R:
        if self._closed:
            work.close()
            raise Closed(f"the proxy on port {self.port} was closed; make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(CALL)
        except FutureTimeout as exc:
            future.cancel()
            raise TimedOut(f"the proxy on port {self.port} did not react within {CALL:g} s") from exc

    async def _set_passing(self, *, requests: bool, replies: bool) -> None:
        self._requests.set_open(requests)
        self._replies.set_open(replies)

    async def _set_cut(self, way: _Way, size: int) -> None:
        way.cut = size

    async def _set_pace(self, delay: float, rate: float) -> None:
        self._delay, self._rate = delay, rate

    async def _set_to_reset(self, count: int) -> None:
        self._to_reset = count

    async def _set_target(self, host: str, port: int) -> None:
        self._target = (host, port)

    async def _listen(self) -> None:
        if self._listener is None:
            listener = _bound(self.port)
            listener.listen(128)
            self._listener = self._loop.create_task(self._take(listener))

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
            self._listener = None

    async def _end(self, *, reset: bool) -> None:
        ending = list(self._carried.items())
        for task, pair in ending:
            pair.reset = reset
            task.cancel()
        if ending:
            await asyncio.wait([task for task, _ in ending])

    async def _take(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                self._accepted += 1
                pair = _Pair(client)
                if self._to_reset:
                    self._to_reset -= 1
                    pair.close()
                    continue
                task = self._loop.create_task(self._carry(pair))
                self._carried[task] = pair
                task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        """Here and not at the end of `_carry`: a task that is cancelled before its first step has no end."""
        self._carried.pop(task).close()

    async def _carry(self, pair: _Pair) -> None:
        try:
            async with asyncio.timeout(CONNECT):
                await self._loop.sock_connect(pair.server, self._target)
            ways = [
                self._loop.create_task(self._pass(self._requests, pair.client, pair.server)),
                self._loop.create_task(self._pass(self._replies, pair.server, pair.client)),
            ]
            try:
                await asyncio.gather(*ways)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.wait(ways)
            pair.reset = False  # both sides have said goodbye
        except (OSError, asyncio.CancelledError):
            pass  # one side broke, or somebody ends us: the other side shall see it

    async def _pass(self, way: _Way, source: socket.socket, sink: socket.socket) -> None:
        while True:
            # At a limited rate in small bites, so that it flows.
            chunk = await self._loop.sock_recv(
                source, max(1, min(CHUNK, int(self._rate / 20))) if self._rate else CHUNK
            )
            if chunk and (self._delay or self._rate):
                await asyncio.sleep(self._delay + (len(chunk) / self._rate if self._rate else 0.0))
            await way.opened.wait()
            if not chunk:
                sink.shutdown(socket.SHUT_WR)
                return
            head, cut = way.take(chunk)
            way.passed += len(head)  # before they go: who has heard them finds them counted
            await self._loop.sock_sendall(sink, head)
            if cut:
                raise ConnectionAbortedError("cut")


class _Way:
    """One direction of all connections."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.opened.set()
        self.passed = 0
        self.cut: int | None = None  # bytes that may still pass before a connection is reset

    def set_open(self, wanted: bool) -> None:
        self.opened.set() if wanted else self.opened.clear()

    def take(self, chunk: bytes) -> tuple[bytes, bool]:
        """What of it may pass, and whether the connection ends there."""
        if self.cut is None:
            return chunk, False
        head, self.cut = chunk[: self.cut], self.cut - len(chunk)
        if self.cut > 0:
            return head, False
        self.cut = None
        return head, True


@dataclasses.dataclass(slots=True)
class _Pair:
    """The two sockets of one connection, and how they will end."""

    client: socket.socket
    server: socket.socket = dataclasses.field(default_factory=socket.socket)
    reset: bool = True

    def __post_init__(self) -> None:
        for one in (self.client, self.server):
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def close(self) -> None:
        for one in (self.client, self.server):
            if self.reset:
                with contextlib.suppress(OSError):  # to linger for 0 s is to send RST
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()


def _bound(port: int) -> socket.socket:
    one = socket.socket()
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        one.bind(("127.0.0.1", port))
    except OSError:
        one.close()
        raise
    return one
