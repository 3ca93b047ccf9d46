"""Backends by URL scheme, found as entry points; no driver is imported before its URL is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqkit._clock import Clock
from mqkit._url import Url, unknown
from mqkit.backends.base import Backend
from mqkit.errors import ConfigError, ExtraMissing

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "mqkit.backends"


def _installed() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # a tenth of the import time of mqkit, for what is asked once per bus

    return {point.name: point for point in entry_points(group=GROUP)}


def backend_for(url: Url, clock: Clock) -> Backend:
    """
    The backend of a URL, connected to nothing yet.

    Raises:
        ConfigError: No backend has this scheme (the nearest known one is named), or its options are wrong.
        ExtraMissing: Its driver is not installed.
    """
    found = _installed()
    if url.scheme not in found:
        raise ConfigError(unknown("backend", url.scheme, found, where="mqkit"))
    try:
        make = found[url.scheme].load()
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.split(".")[0] == "mqkit":
            raise
        raise ExtraMissing(
            f"{url.scheme}:// needs the module {exc.name!r}, which is not installed: "
            f"pip install '{_brought_by(found[url.scheme])}'"
        ) from exc
    if clock.virtual and not make.virtual_clock:
        raise ConfigError(f"a virtual clock cannot move {url.scheme}://, which keeps real time; use it with memory://")
    backend: Backend = make(url, clock)
    return backend


def _brought_by(point: EntryPoint) -> str:
    """What to install for the driver: the package that has the backend, with the extra that the entry point names."""
    package = (point.dist.name if point.dist else None) or "mqkit"
    # One driver may serve several schemes of mqkit's own; a package of somebody else's may need no extra.
    extra = next(iter(point.extras), point.name if package == "mqkit" else "")
    return f"{package}[{extra}]" if extra else package


def known_schemes() -> list[str]:
    return sorted(_installed())
