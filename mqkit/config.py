"""Where a bus gets its URL and its handlers their overrides: arguments, environment, `mqkit.toml`, `pyproject.toml`."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mqkit._numbers import finite, whole
from mqkit._url import unknown
from mqkit.errors import ConfigError
from mqkit.patterns.retry import Backoff, Retry, exponential, fixed, linear

FILE = "mqkit.toml"
PROFILE = "MQKIT_PROFILE"
_BUS_KEYS = ("url", "on")
_OVERRIDES = ("concurrency", "timeout", "retry")
_RETRY_KEYS = ("attempts", "within", "backoff", "crashes")
_BACKOFFS = {"exponential": (exponential, ("base", "cap", "jitter")), "linear": (linear, ("step", "cap", "jitter")),
             "fixed": (fixed, ("seconds", "jitter"))}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Overrides:
    """Per-environment settings of one handler. None leaves what the program says."""

    concurrency: int | None = None
    timeout: float | None = None
    retry: Mapping[str, Any] | None = None

    def apply_retry(self, policy: Retry) -> Retry:
        if self.retry is None:
            return policy
        changes = {name: value for name, value in self.retry.items() if name != "backoff"}
        if "backoff" in self.retry:
            changes["backoff"] = _backoff(self.retry["backoff"])
        return dataclasses.replace(policy, **changes)


@dataclasses.dataclass(frozen=True, slots=True)
class BusConfig:
    """What configuration says about one bus."""

    url: str
    on: Mapping[str, Overrides]


def load(
    name: str, url: str | None, *, environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> BusConfig:
    """
    The configuration of the bus `name`.

    The URL is the argument, else `MQKIT_URL` (for another name than "default" `MQKIT_<NAME>_URL`), else `url` of
    `[bus.<name>]` in `mqkit.toml`, else in `[tool.mqkit.bus.<name>]` of `pyproject.toml`; both files are looked for in
    `folder`, the working directory. With `MQKIT_PROFILE` the tables below `[profile.<profile>]` go first.

    Raises:
        ConfigError: Nothing names a URL (the ways are shown), or a file holds what nobody knows.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    table, where = _bus_table(name, environ.get(PROFILE, ""), folder)
    variable = variable_of(name)
    found = environ.get(variable) or table.get("url") if url is None else url
    if found == "":
        raise ConfigError(f"the URL of the bus {name!r} is empty; leave it out to have it looked up elsewhere")
    if found is None:
        raise ConfigError(
            f"the bus {name!r} has no URL. Give it one of these ways:\n"
            f'  Bus("sqlite:///app.db"{"" if name == "default" else f", name={name!r}"})\n'
            f"  {variable}=sqlite:///app.db in the environment\n"
            f'  url = "sqlite:///app.db" below [bus.{name}] in {FILE}'
        )
    if not isinstance(found, str):
        place = where if url is None else f"Bus(url={url!r})"
        raise ConfigError(f"{place}: url must be a text, not {type(found).__name__}")
    on = table.get("on", {})
    return BusConfig(found, {source: _overrides(source, values, where) for source, values in on.items()})


def variable_of(name: str) -> str:
    return "MQKIT_URL" if name == "default" else f"MQKIT_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}_URL"


def _bus_table(name: str, profile: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What the first file with settings says about this bus, and where it says so."""
    for path, prefix in ((folder / FILE, ()), (folder / "pyproject.toml", ("tool", "mqkit"))):
        place, root = path.name, _read(path)
        for part in prefix:
            root = _table(root, part, place)
            place = f"{place} {part}" if place == path.name else f"{place}.{part}"
        if root:
            table = _merged(root, name, profile, place)
            return table, f"{path.name} [{'.'.join((*prefix, 'bus', name))}]"
    if profile:
        raise ConfigError(f"{PROFILE}={profile} is set, and neither {FILE} nor pyproject.toml has settings of mqkit")
    return {}, FILE


def _merged(root: dict[str, Any], name: str, profile: str, place: str) -> dict[str, Any]:
    """The table of a bus with that of the profile laid over it, handler by handler."""
    _known(root, ("bus", "profile"), place)
    plain, profiles = (_table(root, part, place) for part in ("bus", "profile"))
    special: dict[str, Any] = {}
    if profile:
        if profile not in profiles:
            raise ConfigError(unknown("profile", profile, profiles, where=f"{PROFILE} names what {place}"))
        chosen = _table(profiles, profile, f"{place} profile")
        _known(chosen, ("bus",), f"{place} profile.{profile}")
        special = _table(chosen, "bus", f"{place} profile.{profile}")
    _refuse_misspelt(name, {*plain, *special}, place)
    base, over = (_table(buses, name, f"{place} bus") for buses in (plain, special))
    for table in (base, over):
        _known(table, _BUS_KEYS, f"{place} bus.{name}")
    on = {**_table(base, "on", f"{place} bus.{name}"), **_table(over, "on", f"{place} bus.{name}")}
    return {**base, **over, "on": on}


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # read by the first bus that opens, not by `import mqkit`

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path.name} cannot be read: {exc}") from exc


def _table(parent: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The table of this name, empty where there is none."""
    table = parent.get(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: {name} must be a table, not {table!r}")
    return table


def _refuse_misspelt(name: str, tables: set[str], where: str) -> None:
    """A bus without a table is fine, as one file may serve several programs; unless there is one spelled nearly so."""
    near = [] if name in tables else difflib.get_close_matches(name, tables, n=1, cutoff=0.8)
    if near:
        raise ConfigError(
            f"{where} has no bus {name!r}; did you mean {near[0]!r}? If both exist, give this one a table too, which may "
            f"be empty: [bus.{name}]"
        )


def _known(table: Any, names: tuple[str, ...], where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table, not {table!r}")
    for name in table:
        if name not in names:
            raise ConfigError(unknown("setting", name, names, where=where))


def _overrides(source: str, values: Any, where: str) -> Overrides:
    where = f'{where}.on."{source}"'
    _known(values, _OVERRIDES, where)
    concurrency, timeout, retry = (values.get(name) for name in _OVERRIDES)
    if concurrency is not None and not whole(concurrency, 1, 10_000):
        raise ConfigError(f"{where}: concurrency={concurrency!r} must be a whole number from 1 to 10000")
    if timeout is not None and not (finite(timeout) and timeout > 0):
        raise ConfigError(f"{where}: timeout={timeout!r} must be seconds above 0")
    if retry is not None:
        _known(retry, _RETRY_KEYS, f"{where}.retry")
    overrides = Overrides(concurrency, timeout, retry)
    try:
        overrides.apply_retry(Retry())  # found now, not when the first message fails
    except (ConfigError, TypeError) as exc:
        raise ConfigError(f"{where}.retry: {exc}") from exc
    return overrides


def _backoff(table: Any) -> Backoff:
    kind = table.get("kind") if isinstance(table, dict) else None
    if kind not in _BACKOFFS:
        raise ConfigError(f"backoff must be a table with kind = {', '.join(_BACKOFFS)}; it is {table!r}")
    make, names = _BACKOFFS[kind]
    arguments = {name: value for name, value in table.items() if name != "kind"}
    _known(arguments, names, f"backoff {kind}")
    if kind == "fixed":
        return fixed(arguments.pop("seconds"), **arguments) if "seconds" in arguments else _missing(kind, "seconds")
    made: Backoff = make(**arguments)  # type: ignore[operator]
    return made


def _missing(kind: str, name: str) -> Backoff:
    raise ConfigError(f"backoff {kind} needs {name}")
