"""Where a bus gets its URL and its handlers their overrides: arguments, environment, `mqkit.toml`, `pyproject.toml`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    found = url or environ.get(variable) or table.get("url")
    if not found:
        raise ConfigError(
            f"the bus {name!r} has no URL. Give it one of these ways:\n"
            f'  Bus("sqlite:///app.db"{"" if name == "default" else f", name={name!r}"})\n'
            f"  {variable}=sqlite:///app.db in the environment\n"
            f'  url = "sqlite:///app.db" below [bus.{name}] in {FILE}'
        )
    if not isinstance(found, str):
        raise ConfigError(f"{where}: url must be a text, not {type(found).__name__}")
    handlers = table.get("on", {})
    if not isinstance(handlers, dict):
        raise ConfigError(f"{where}.on must be a table of handlers")
    return BusConfig(found, {source: _overrides(source, values, where) for source, values in handlers.items()})


def variable_of(name: str) -> str:
    return "MQKIT_URL" if name == "default" else f"MQKIT_{re.sub(r'[^A-Za-z0-9]', '_', name).upper()}_URL"


def _bus_table(name: str, profile: str, folder: Path) -> tuple[dict[str, Any], str]:
    for path, prefix in ((folder / FILE, ""), (folder / "pyproject.toml", "tool.mqkit.")):
        document = _read(path)
        root = document.get("tool", {}).get("mqkit", {}) if prefix else document
        if not root:
            continue
        _known(root, ("bus", "profile"), f"{path.name} {prefix.rstrip('.')}".strip())
        base = root.get("bus", {}).get(name, {})
        over: dict[str, Any] = {}
        if profile:
            profiles = root.get("profile", {})
            if profile not in profiles:
                raise ConfigError(unknown("profile", profile, profiles, where=f"{PROFILE} names what {path.name}"))
            _known(profiles[profile], ("bus",), f"{path.name} [{prefix}profile.{profile}]")
            over = profiles[profile].get("bus", {}).get(name, {})
        where = f"{path.name} [{prefix}bus.{name}]"
        for table in (base, over):
            _known(table, _BUS_KEYS, where)
        merged = {**base, **over}
        handlers = {**base.get("on", {}), **over.get("on", {})}
        if handlers:
            merged["on"] = handlers
        return merged, where
    if profile:
        raise ConfigError(f"{PROFILE}={profile} is set, and neither {FILE} nor pyproject.toml has settings of mqkit")
    return {}, FILE


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # read by the first bus that opens, not by `import mqkit`

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{path.name} cannot be read: {exc}") from exc


def _known(table: Any, names: tuple[str, ...], where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    for name in table:
        if name not in names:
            raise ConfigError(unknown("setting", name, names, where=where))


def _overrides(source: str, values: Any, where: str) -> Overrides:
    where = f'{where}.on."{source}"'
    _known(values, _OVERRIDES, where)
    concurrency, timeout, retry = (values.get(name) for name in _OVERRIDES)
    if concurrency is not None and (
        not isinstance(concurrency, int) or isinstance(concurrency, bool) or concurrency < 1
    ):
        raise ConfigError(f"{where}: concurrency={concurrency!r} must be a whole number, 1 or more")
    if timeout is not None and (not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or timeout <= 0):
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
