"""`mqkit run`: consume with a bus of yours, in one process or several."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from mqkit import config, worker
from mqkit.bus import Bus
from mqkit.cli._lifeline import Lifeline
from mqkit.cli._logs import log_to_stderr
from mqkit.cli._probe import Probe
from mqkit.cli._session import Session
from mqkit.cli._supervisor import Supervisor
from mqkit.errors import ConfigError
from mqkit.health import Health

CHILD_URL = "MQKIT_RUN_URL"  # carries --url to the processes, whose command lines anybody can read


def run(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="MODULE:NAME of a Bus, or of a function that returns one.")],
    only: Annotated[list[str] | None, typer.Option(help="Only this source; may be repeated.")] = None,
    grace: Annotated[float, typer.Option(help="Seconds that running handlers have to finish.", min=0)] = 30.0,
    processes: Annotated[int, typer.Option(help="So many processes, restarted when they die.", min=1, max=1024)] = 1,
    reload: Annotated[
        bool, typer.Option("--reload", help="Start again when a .py file below the working directory changes.")
    ] = False,
    health_port: Annotated[int | None, typer.Option(help="Serve GET /live and /ready here.", min=0, max=65535)] = None,
    health_host: Annotated[str, typer.Option(help="Address of the health port.")] = "127.0.0.1",
    log_level: Annotated[str, typer.Option(help="Of mqkit's own log.")] = "info",
    lifeline: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Consume until SIGTERM or SIGINT; the second one ends at once."""
    session: Session = context.obj
    log_to_stderr(log_level)
    if processes > 1 or reload:
        command = [sys.executable, "-m", "mqkit.cli", *_again(session), "run", target, "--grace", repr(grace)]
        command += [f"--only={one}" for one in only or ()] + ["--log-level", log_level]
        supervisor = Supervisor(command, processes, grace=grace, reload=Path.cwd() if reload else None)
        with Probe(supervisor.health, health_host, health_port):
            code = supervisor.run()
        if code:
            raise typer.Exit(code)
        return
    bus = bus_of(target, session)

    def health() -> Health:
        return health_of(bus)

    with Probe(health, health_host, health_port), Lifeline(health, lifeline):
        worker.run(bus, only=only or None, grace=grace)


def health_of(bus: Bus) -> Health:
    """As `Bus.health`, but a bus that is to consume and does not yet is not ready."""
    health = bus.health()
    if bus.link.users or not health.ready:
        return health
    return Health(health.live, False, [*health.reasons, "not consuming yet"])


def bus_of(target: str, session: Session) -> Bus:
    """Import it. Raises `ConfigError` that says where it went wrong."""
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise ConfigError(f"{target!r}: write MODULE:NAME, for example shop.app:bus")
    found = _imported(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as exc:
        raise ConfigError(f"module {module!r} has no {name!r}") from exc
    bus = found if isinstance(found, Bus) else _made(found, target)
    if session.name is not None and session.name != bus.name:
        raise ConfigError(f"--name {session.name}: {target} is the bus {bus.name!r}")
    if session.url is not None:
        if bus.link.url is not None:
            raise ConfigError(f"--url: {target} names its URL itself; write Bus() there to choose it from outside")
        os.environ[config.variable_of(bus.name)] = session.resolved_url() or ""
    return bus


def _imported(module: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is not None and (module == exc.name or module.startswith(f"{exc.name}.")):
            raise ConfigError(f"no module {module!r} in {os.getcwd()} or on the Python path") from exc
        raise ConfigError(_where(f"module {module!r} cannot be imported", exc)) from exc
    except Exception as exc:
        raise ConfigError(_where(f"module {module!r} cannot be imported", exc)) from exc


def _made(found: Any, target: str) -> Bus:
    if not callable(found):
        raise ConfigError(f"{target} is {type(found).__name__}, neither a Bus nor a function that returns one")
    try:
        bus = found()
    except Exception as exc:
        raise ConfigError(_where(f"{target}()", exc)) from exc
    if not isinstance(bus, Bus):
        raise ConfigError(f"{target}() returned {type(bus).__name__}, not a Bus")
    return bus


def _where(what: str, error: Exception) -> str:
    frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<frozen")]
    known = isinstance(error, SyntaxError) or not frames  # a SyntaxError says its place itself
    place = "" if known else f" at {frames[-1].filename}:{frames[-1].lineno}"
    return f"{what}: {type(error).__name__}: {error}{place}; --debug shows the traceback"


def _again(session: Session) -> list[str]:
    """The common options for the processes."""
    options = ["--debug"] if session.out.debug else []
    if session.name is not None:
        options += ["--name", session.name]
    if session.url is not None:
        os.environ[CHILD_URL] = session.resolved_url() or ""
        options += ["--url", f"env:{CHILD_URL}"]
    return options
