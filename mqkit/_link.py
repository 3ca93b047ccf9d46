"""Link: what a bus has open at its messaging system, from its first use to its close, and who works with it."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from mqkit import config
from mqkit._clock import Clock
from mqkit._outgoing import outgoing
from mqkit._publish import Overflow, PublishPump
from mqkit._registry import backend_for
from mqkit._topology import Mode, Topology, declaration_of
from mqkit._url import Url
from mqkit.backends.base import Address, Admin, Backend, Outgoing
from mqkit.destinations import Destination, check_name
from mqkit.errors import CapabilityMissing, Closed, ConfigError, NotFound

AT_EXIT = 5.0  # seconds an open bus may take to close when the interpreter ends

State = Literal["unopened", "open", "closing", "closed", "forked"]


class User(Protocol):
    """Somebody who takes messages over a link and is ended with it: a worker or a subscription."""

    starting: bool  # not every source is open yet

    @property
    def consumers(self) -> Sequence[Any]: ...

    def end(self, timeout: float) -> None:
        """Stop taking, settle what is in hand, give back the rest; within so many seconds."""
        ...


class Link:
    """
    Opened by its first use, by any thread.

    While it closes, everything still works for handlers that run: they are to finish, not to fail. Only after them the
    publish pump is flushed and ended, then the backend.
    """

    def __init__(
        self, name: str, url: str | None, *, mode: Mode, buffer: int, overflow: Overflow, clock: Clock
    ) -> None:
        self.name = name
        self.url = url
        self.clock = clock
        self.state: State = "unopened"
        self.topology = Topology(mode)
        self.users: list[User] = []
        self.listening: Any = None  # what subscriptions to broadcasts share, see `_listen`
        self.lock = threading.RLock()
        self.pump: PublishPump | None = None
        self._mode = mode
        self._buffer = buffer
        self._overflow = overflow
        self._settings: config.BusConfig | None = None
        self._backend: Backend | None = None  # made once: a bus on memory:// that is opened again finds its messages
        self._usable: Backend | None = None
        self._ended = threading.Event()

    @property
    def backend(self) -> Backend:
        """Raises `Closed` after the end; `ConfigError`, `ExtraMissing` when there is no such system."""
        return self._usable or self._opened()

    @property
    def settings(self) -> config.BusConfig:
        if self._settings is None:
            self._opened()
        assert self._settings is not None
        return self._settings

    @property
    def publish_pump(self) -> PublishPump:
        pump = self.pump
        if pump is None:
            with self.lock:
                backend = self.backend
                pump = self.pump
                if pump is None:
                    pump = self.pump = PublishPump(
                        backend, self.topology, buffer=self._buffer, overflow=self._overflow, name=self.name
                    )
        return pump

    def prepare(
        self, to: Destination[Any], payload: Any, options: Mapping[str, Any], *, id: str = "", staged: bool = False
    ) -> Outgoing:
        """Encode and check one message of a destination this link knows from now on."""
        if staged and options.get("native") is not None:
            raise ConfigError("delivery.publish takes no native=: a staged message is sent with the settlement")
        backend = self._usable or self._opened()
        if not self.topology.knows(to):
            self.note(to)
        return outgoing(to, payload, options, backend.capabilities, id=id)

    def note(self, to: Destination[Any], group: str | None = None) -> None:
        """Know a destination, and what must exist before it is used."""
        if not isinstance(to, Destination):
            raise ConfigError(f"{to!r} is not a destination; declare Queue, Topic or Broadcast once and pass that")
        capabilities = self.backend.capabilities
        self.topology.note(to, capabilities.name)
        if to.priorities > capabilities.priorities:
            raise CapabilityMissing(f"{to!r} declares priorities, and {capabilities.name} has none")
        if group is not None and to.declare:
            declaration = declaration_of(to, check_name(group, "group"), capabilities.name)
            self.topology.note_source(declaration, weak=True)

    def admin_of(self, address: Address) -> Admin:
        """An admin, after what `address` needs was declared."""
        backend = self.backend
        self.topology.ensure(backend, [address])
        return backend.admin()

    def publish_within(self, messages: Sequence[Outgoing], native: Any) -> list[str]:
        """Publish in the caller's own transaction, on its thread; the ids."""
        try:
            self.backend.publish_within(native, messages)
        except NotFound as exc:
            # It cannot be declared now, while that transaction may keep all others from writing.
            raise ConfigError(f"{exc}, before your transaction begins: bus.declare(...)") from exc
        return [message.id for message in messages]

    # -- who works with it -----------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises `Closed` when it is at its end, or belongs to the process this one was forked from."""
        if self.state == "forked":
            raise Closed(f"bus {self.name!r}: this was opened before the process was forked and belongs to the parent")
        if self.state == "closed":
            raise Closed(f"bus {self.name!r} is closed; open() it again before using it")

    def join(self, user: User) -> None:
        """Raises `Closed` unless it may still begin to take messages."""
        with self.lock:
            self.check()
            if self.state == "closing":
                raise Closed(f"bus {self.name!r} is closing")
            self.users.append(user)

    def leave(self, user: User) -> None:
        with self.lock:
            if user in self.users:
                self.users.remove(user)

    # -- its ends --------------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """May be used again after a close."""
        with self.lock:
            if self.state == "closed":
                self.state = "unopened"

    def close(self, timeout: float) -> None:
        """
        End users, then publishing, then the backend; each is ended whatever became of the one before.

        Raises:
            What went wrong with publishing, else the first thing that did; the others are its notes.
        """
        with self.lock:
            if self.state in ("closed", "forked"):
                return
            second, self.state = self.state == "closing", "closing"
            if not second:
                self._ended.clear()
        if second:
            self._ended.wait(timeout)
            return
        deadline = time.monotonic() + timeout
        errors: list[BaseException] = []

        def attempt(act: Callable[[float], None]) -> None:
            try:
                act(max(0.0, deadline - time.monotonic()))
            except BaseException as exc:  # noqa: BLE001  raised below, when everything is ended
                errors.append(exc)

        try:
            for user in list(self.users):
                attempt(user.end)
            if self.pump is not None:
                pump, of_users = self.pump, errors[:]
                errors.clear()
                attempt(lambda left: pump.close(max(left, min(timeout, 1.0))))
                errors += of_users
            if self._usable is not None:
                backend = self._usable
                attempt(lambda _: backend.close())
        finally:
            with self.lock:
                self.users.clear()
                self.pump = self._usable = None
                self.topology = Topology(self._mode)
                self.state = "closed"
                _open.discard(self)
            self._ended.set()
        if errors:
            first, *others = errors
            for other in others:
                first.add_note(f"and then: {type(other).__name__}: {other}")
            raise first

    def orphan(self) -> None:
        """In a forked child: nothing here is used any more, and nothing is closed; it is the parent's."""
        self.state = "forked"
        _open.discard(self)
        backend, pump = self._usable, self.pump
        self._usable = None
        self.lock = threading.RLock()
        if backend is not None:
            backend.after_fork()
        if pump is not None:
            pump.after_fork()

    def _opened(self) -> Backend:
        with self.lock:
            self.check()
            if self._usable is None:
                if self._backend is None:
                    self._settings = config.load(self.name, self.url)
                    self._backend = backend_for(Url.parse(self._settings.url), self.clock)
                self._usable = self._backend
                if self.state == "unopened":
                    self.state = "open"
                    _open.add(self)
            return self._usable


_open: set[Link] = set()  # until they are closed: what was accepted must be sent, whoever has forgotten its bus


def _close_all() -> None:
    for link in list(_open):
        try:
            link.close(AT_EXIT)
        except Exception as exc:  # noqa: BLE001  at interpreter exit nobody can catch it any more
            sys.stderr.write(f"mqkit: bus {link.name!r} at exit: {exc}\n")


atexit.register(_close_all)
