"""Harness: what one conformance case has in its hands. The author of a backend makes one in a fixture named `harness`."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from urllib.parse import urlencode

from mqkit._clock import SystemClock
from mqkit._registry import backend_for
from mqkit._url import Url
from mqkit.backends.base import Capabilities, Depth
from mqkit.bus import Bus
from mqkit.destinations import Destination
from mqkit.errors import MqkitError
from mqkit.message import Delivery, Message
from mqkit.subscription import Subscription
from mqkit.testing.chaos import FaultProxy
from mqkit.testing.conformance.faults import Faults

T = TypeVar("T")

STEP = 0.005  # seconds between two looks at a condition
HOOKS = (
    "denied_url",
    "driver",
    "endpoint",
    "fifo_of",
    "find_native",
    "inject",
    "kill_connections",
    "outage",
    "partition_of",
    "read_native",
    "restart",
    "retention",
    "to_partition",
    "transaction",
    "untrusted_url",
)


class Harness:
    """
    One test's access to one backend. `close` it when the test ends.

    A backend's author overrides the hooks that the system allows; cases that need another one are skipped by name.

    Args:
        url: Of a running system. Buses made from it see each other's messages.
        scale: Factor on every deadline.
    """

    def __init__(self, url: str, *, scale: float = 1.0) -> None:
        self.url = url
        self.scale = scale
        self._backend = backend_for(Url.parse(url), SystemClock())
        self._buses: list[Bus] = []
        self._processes: list[Process] = []
        self._run = uuid.uuid4().hex[:8]
        self._names = itertools.count(1)

    # -- what every case may use -----------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        return self._backend.capabilities

    @property
    def system(self) -> str:
        """What the suite runs on, for the table of results; the version too where that is not the backend's own."""
        return self.capabilities.name

    def bus(self, url: str | None = None, **options: Any) -> Bus:
        """A new client, closed when the test ends. Options are those of `Bus`."""
        bus = Bus(url or self.url, **options)
        self._buses.append(bus)
        return bus

    def faulty_bus(self, **options: Any) -> tuple[Bus, Faults]:
        """A new client, and what may be made to go wrong between it and the system."""
        bus = self.bus(**options)
        return bus, Faults(bus.link.backend)

    def unique(self, stem: str) -> str:
        """A name nobody else uses, in this run or another."""
        return f"{stem}-{self._run}-{next(self._names)}"

    def url_with(self, **options: object) -> str:
        """The URL with query options added, such as `lease=1.0`."""
        return f"{self.url}{'&' if '?' in self.url else '?'}{urlencode(options)}"

    def wait(self, condition: Callable[[], T], within: float = 10.0) -> T:
        """What the condition returns as soon as that is true; `AssertionError` after `within` scaled seconds."""
        deadline = time.monotonic() + within * self.scale
        while not (value := condition()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within * self.scale:g} s: {_described(condition)} (it is {value!r})")
            time.sleep(STEP)
        return value

    def take(self, messages: Subscription[T], count: int, within: float = 10.0) -> list[Delivery[T]]:
        """So many deliveries, unsettled."""
        taken: list[Delivery[T]] = []

        def enough() -> bool:
            taken.extend(messages.receive(max=count - len(taken), timeout=0.1))
            return len(taken) == count

        self.wait(enough, within)
        return taken

    def take_only(self, messages: Subscription[T], count: int, quiet: float = 0.2) -> list[Delivery[T]]:
        """As `take`, and whatever else comes within `quiet` seconds: there should be nothing."""
        return [*self.take(messages, count), *messages.receive(max=20, timeout=quiet)]

    def depth(self, source: Destination[Any], group: str | None = None, *, dead: bool = False) -> Depth:
        """How much a queue, a group or their dead letters hold now; zeros where there is none."""
        address = source.address._replace(group=group or "", dead=dead)
        found = [depth for depth in self.describe() if depth.address == address]
        return found[0] if found else Depth(address, 0, 0, 0)

    def describe(self) -> Iterable[Depth]:
        """Every source that exists at the backend, by an access of the harness's own."""
        admin = self._backend.admin()
        try:
            return admin.describe()
        finally:
            admin.close()

    def wait_empty(self, source: Destination[Any], group: str | None = None, within: float = 10.0) -> None:
        """Until nothing is ready, in hand or delayed: what was not delivered by then never will be."""

        def empty() -> bool:
            depth = self.depth(source, group)
            return not (depth.ready or depth.inflight or depth.delayed)

        self.wait(empty, within)

    def delete(self, source: Destination[Any], group: str | None = None, *, dead: bool = False) -> None:
        """Remove a queue, topic or group, or only its dead letters, under the feet of whoever uses it."""
        admin = self._backend.admin()
        try:
            admin.delete(source.address._replace(group=group or "", dead=dead))
        finally:
            admin.close()

    def purge(self, source: Destination[Any], group: str | None = None) -> int:
        """Remove what waits there, not what is in somebody's hands; how many."""
        admin = self._backend.admin()
        try:
            return admin.purge(source.address._replace(group=group or ""))
        finally:
            admin.close()

    def consumer(self, program: str, *args: str, url: str | None = None) -> Process:
        """
        A real process that calls `program(url, *args)`.

        Args:
            program: A function of `mqkit.testing.conformance.programs`.
        """
        process = Process(self, program, url or self.url, args)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """End processes and close buses, whatever state the test left them in."""
        for process in self._processes:
            process.kill()
        for bus in reversed(self._buses):
            with contextlib.suppress(MqkitError):  # the case has asserted what it wanted to
                bus.close(timeout=5.0)
        self._backend.close()

    @property
    def fetched_ahead(self) -> int:
        """Messages that a consumer has already and that count as waiting, so that a purge does not reach them; at most."""
        return 0

    @property
    def forgets_attempts(self) -> bool:
        """Whether the attempts of an ordered message begin again when its holder leaves, as is documented of some systems."""
        return False

    @property
    def foreign_body(self) -> bytes:
        """What a foreign client sends; something else where messages are text."""
        return bytes(range(256))

    @property
    def backlog(self) -> int:
        """How many messages wait where they are many; fewer on a system for which that takes too long."""
        return 100_000

    # -- hooks -----------------------------------------------------------------------------------------------------

    def offers(self, name: str) -> bool:
        """Is this hook overridden?"""
        return getattr(type(self), name) is not getattr(Harness, name)

    def inject(self, destination: Destination[Any], body: bytes, headers: dict[str, str]) -> None:
        """Put a message there as a foreign client would, which knows nothing of mqkit."""
        raise NotImplementedError("this harness does not inject foreign messages")

    def read_native(self, destination: Destination[Any]) -> list[bytes]:
        """The bodies that wait there, as a foreign client reads them."""
        raise NotImplementedError("this harness does not read natively")

    def find_native(self, destination: Destination[Any], native: Any) -> bytes:
        """The body of the one message that `message.native` names, as a foreign client finds it."""
        raise NotImplementedError("this harness cannot look up one message natively")

    def transaction(self) -> AbstractContextManager[object]:
        """
        A transaction of the user's own, as `publish(native=)` takes it.

        It is committed at the end of the block, by the client object that was handed in, and rolled back by an exception.
        """
        raise NotImplementedError("this harness knows no transactions of the user's own")

    def retention(self, seconds: float) -> object:
        """What a topic needs as `native=` to keep its messages for groups that start with "earliest"."""
        raise NotImplementedError("this harness knows no topics that keep their messages")

    def partition_of(self, message: Message) -> int:
        """The partition the message was read from."""
        raise NotImplementedError("this harness knows no partitions")

    def to_partition(self, number: int) -> object:
        """What a publish needs as `native=` to go to this partition."""
        raise NotImplementedError("this harness cannot choose a partition")

    def fifo_of(self, message: Message) -> tuple[str, str]:
        """The ordering group and the deduplication id under which the system has the message."""
        raise NotImplementedError("this harness knows no ordering groups with deduplication")

    def outage(self) -> AbstractContextManager[None]:
        """Inside the block the system answers nobody; afterwards it is there again with what it had."""
        raise NotImplementedError("this harness cannot make its system unavailable")

    def restart(self) -> None:
        """Stop the system and start it again with what it has stored."""
        raise NotImplementedError("this harness does not restart its system")

    def endpoint(self) -> tuple[str, int]:
        """Host and port of the connections that the URL leads to, for cases that put a `FaultProxy` between."""
        raise NotImplementedError("this harness knows no connection that could be broken")

    def proxy(self) -> FaultProxy:
        """A proxy in front of `endpoint`, where the URL then leads `through`."""
        return FaultProxy(*self.endpoint())

    def kill_connections(self) -> int:
        """Have the system end the connections of this harness's buses; how many it ended."""
        raise NotImplementedError("this harness cannot have its system end connections")

    def denied_url(self) -> str:
        """A URL of the system under which it refuses this client's credentials or rights."""
        raise NotImplementedError("this harness knows no client that its system refuses")

    def untrusted_url(self) -> str:
        """A URL of the system over TLS, with a certificate that this client has no reason to trust."""
        raise NotImplementedError("this harness has no server with a bad certificate")

    def driver(self) -> tuple[str, str]:
        """The module that the backend imports to reach its system, and the extra of its own package that brings it."""
        raise NotImplementedError("this harness needs nothing that an extra brings")


class Process:
    """A python process that runs one program of the suite and speaks by lines on its standard output."""

    def __init__(self, harness: Harness, program: str, url: str, args: Iterable[str]) -> None:
        self._harness = harness
        self._lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "mqkit.testing.conformance", program, url, *args],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name=f"reader of {program}", daemon=True)
        self._reader.start()

    def lines(self) -> list[str]:
        """Its output so far."""
        return list(self._lines)

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait_line(self, wanted: str | int, within: float = 20.0) -> list[str]:
        """Until it has printed a line with this text, or so many lines."""

        def printed() -> bool:
            if isinstance(wanted, int):
                return len(self._lines) >= wanted
            return any(wanted in line for line in self._lines)

        deadline = time.monotonic() + within * self._harness.scale
        while not printed():
            ended = not self._reader.is_alive()
            if (ended and not printed()) or time.monotonic() > deadline:
                how = f"ended with {self._process.wait()}" if ended else f"is silent for {within:g} s"
                raise AssertionError(f"the process {how} and has not printed {wanted!r} but {self._lines}")
            time.sleep(STEP)
        return self.lines()

    def kill(self) -> None:
        """SIGKILL; returns when it is dead."""
        self._process.kill()
        self._end()

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and time goes on, until `thaw`."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self._process.terminate()

    def wait(self, within: float = 20.0) -> int:
        """Its exit code."""
        try:
            code = self._process.wait(within * self._harness.scale)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process has not ended within {within:g} s; it printed {self._lines}") from None
        self._end()
        return code

    def _end(self) -> None:
        self._process.wait()
        self._reader.join(5.0)
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))


def _described(condition: Callable[[], object]) -> str:
    """A lambda by its source; anything else by its name."""
    name = getattr(condition, "__qualname__", repr(condition))
    if not name.endswith("<lambda>"):
        return name
    try:
        return " ".join(inspect.getsource(condition).split())
    except OSError:
        return name
