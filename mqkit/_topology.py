"""What a bus uses and what has been declared at the broker, each declared once, by whoever needs it first."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import msgspec

from mqkit.backends.base import Address, Backend, Capabilities, Declaration
from mqkit.destinations import Destination
from mqkit.errors import ConfigError

Mode = Literal["create", "check", "never"]


class Topology:
    """
    Destinations by name, and which of their declarations the broker has confirmed.

    Used by any thread: callers note destinations (no I/O), pumps ensure them (I/O, without the lock).
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._lock = threading.RLock()  # see `_ticket`: signal handlers publish
        self._destinations: dict[str, Destination[Any]] = {}
        # Destinations already compared, by id(). Not kept alive: a program may make one per message.
        self._noted: dict[int, weakref.ref[Destination[Any]]] = {}
        # Each tuple is replaced, never changed: it is read without the lock.
        self._declarations: dict[Address, tuple[Declaration, ...]] = {}
        self._done: set[Address] = set()

    def knows(self, destination: object) -> bool:
        """Was it noted before? Cheap: asked per message."""
        return id(destination) in self._noted

    def note(self, destination: Destination[Any], backend_name: str) -> None:
        """Remember a destination. `ConfigError` when the bus knows another of this name with other options."""
        if self.knows(destination):
            return
        with self._lock:
            known = self._destinations.setdefault(destination.name, destination)
            for option, value in destination.options().items():
                other = known.options()[option]
                if other != value:
                    raise ConfigError(
                        f"{destination!r} is declared with {option}={value!r} here and {option}={other!r} elsewhere on this bus"
                    )
            self._noted[id(destination)] = weakref.ref(destination, partial(_forget, self._noted, id(destination)))
            declarations = declarations_of(destination, backend_name) if destination.declare else []
            noted = self._declarations.get(destination.address, ())
            fresh = [one for one in declarations if one not in noted]
            self._declarations[destination.address] = (*noted, *fresh)
            if fresh:
                self._done.discard(destination.address)

    def note_source(self, declaration: Declaration, *, weak: bool = False) -> None:
        """Remember what a consumer needs: its queue or group. Weak: unless a consumer has said so already."""
        with self._lock:
            if not weak or declaration.address not in self._declarations:
                self._declarations[declaration.address] = (declaration,)

    def missing(self, addresses: Iterable[Address]) -> bool:
        """Is anything of this not yet known to exist? Cheap: asked per message."""
        done = self._done
        return any(address not in done for address in addresses)

    def ensure(self, backend: Backend, addresses: Iterable[Address]) -> None:
        """
        Declare (or check) what is not yet known to exist.

        Raises:
            TopologyMismatch, NotFound, Unavailable, Denied: As `Admin.declare`; nothing is remembered, ask again.
        """
        # Dead letters come and go with the queue or group they belong to.
        wanted = [address for address in dict.fromkeys(addresses) if address not in self._done]
        if not wanted:
            return
        # Without the lock: a signal handler that waits for us may have interrupted who holds it.
        sources = [address._replace(dead=False) for address in wanted]
        declarations = [one for address in sources for one in self._declarations.get(address, ())]
        if declarations and self._mode != "never":
            admin = backend.admin()
            try:
                (admin.declare if self._mode == "create" else admin.check)(declarations)
            finally:
                admin.close()
        self._done.update(wanted)

    def forget(self, addresses: Iterable[Address] | None = None) -> None:
        """Declare these (or all) again at the next use: the broker lost them, or the connection to it."""
        if addresses is None:
            self._done = set()
        else:
            self._done.difference_update(addresses)

    @property
    def destinations(self) -> list[Destination[Any]]:
        with self._lock:
            return list(self._destinations.values())


def _forget(noted: dict[int, Any], id: int, _: object) -> None:
    """A destination is gone, and its id() may be another's next."""
    noted.pop(id, None)


def declarations_of(destination: Destination[Any], backend_name: str) -> list[Declaration]:
    """A queue, broadcast or topic, then the groups a topic names."""
    return [declaration_of(destination, group, backend_name) for group in (None, *destination.groups)]


def declaration_of(destination: Destination[Any], group: str | None, backend_name: str) -> Declaration:
    """By somebody who does not consume it, and so has no say in its order."""
    return Declaration(
        destination.address._replace(group=group or ""),
        keyed=destination.key is not None,
        partitions=destination.partitions,
        priorities=destination.priorities,
        order=None,
        native=next((option for option in destination.native if option.backend == backend_name), None),
    )


def source_declaration(
    destination: Destination[Any], group: str | None, backend_name: str, *, order: Any = None, start: Any = "latest"
) -> Declaration:
    """By a consumer, whose default is to keep the order of keys where there are any."""
    declaration = declaration_of(destination, group, backend_name)
    order = order or ("key" if declaration.keyed else "none")
    return msgspec.structs.replace(declaration, order=order, start=start)


def check_start(source: Destination[Any], declaration: Declaration, capabilities: Capabilities) -> None:
    """`ConfigError` for a consumer that wants to begin at what nobody keeps."""
    keeps = capabilities.retains or getattr(declaration.native, "retain", 0) > 0
    if declaration.start == "earliest" and not keeps:
        raise ConfigError(
            f'{source!r}, start="earliest": the topic keeps nothing to start from; give it an options object of '
            f"mqkit.native for {capabilities.name} with retain=seconds"
        )
