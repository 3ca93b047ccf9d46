"""What the options before a command say, and the bus they lead to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mqkit.backends.base import Address, Admin, Backend, Declaration
from mqkit.bus import Bus
from mqkit.cli._output import Output
from mqkit.cli._target import nearest
from mqkit.errors import ConfigError, NotFound, TopologyMismatch


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """
    Args:
        url: As given: a URL, `env:NAME`, `file:PATH`, or None.
        name: Of the bus, or None where the option was left out.
    """

    url: str | None
    name: str | None
    out: Output

    def resolved_url(self) -> str | None:
        return None if self.url is None else referenced(self.url)

    @contextmanager
    def bus(self) -> Iterator[Bus]:
        """A bus that declares nothing by itself; closed at the end, opened by its first use."""
        bus = Bus(self.resolved_url(), name=self.name or "default", declare="never")
        try:
            yield bus
        finally:
            bus.close()


def referenced(url: str) -> str:
    """A URL that holds a secret need not stand on a command line: `env:NAME` and `file:PATH` lead to it."""
    if url.startswith("env:"):
        name = url.removeprefix("env:")
        if not os.environ.get(name):
            raise ConfigError(f"--url {url}: the variable {name} is not set")
        return os.environ[name]
    if url.startswith("file:"):
        path = Path(url.removeprefix("file:"))
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"--url {url} cannot be read: {exc}") from exc
    return url


def backend_of(bus: Bus) -> Backend:
    return bus.link.backend


@contextmanager
def admin_of(bus: Bus) -> Iterator[Admin]:
    admin = backend_of(bus).admin()
    try:
        yield admin
    finally:
        admin.close()


def exists(admin: Admin, address: Address) -> bool:
    try:
        admin.check([Declaration(address)])
    except TopologyMismatch:  # with options the command line does not know: it is there
        return True
    except NotFound:
        return False
    return True


def require(admin: Admin, address: Address, *, hint: str = "") -> None:
    """Raises `NotFound`, which names what was probably meant."""
    if exists(admin, address):
        return
    near = nearest(address, [depth.address for depth in admin.describe()])
    meant = f"; did you mean {near}?" if near else ""
    raise NotFound(f"{address} does not exist{meant}{hint}")
