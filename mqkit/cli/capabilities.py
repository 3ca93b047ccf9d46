"""`mqkit capabilities`: what each installed backend can do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mqkit._clock import SystemClock
from mqkit._registry import backend_for, known_schemes
from mqkit._url import Url, unknown
from mqkit.backends.base import Capabilities
from mqkit.cli import _exit
from mqkit.cli._session import Session
from mqkit.errors import ConfigError, MqkitError

SAMPLES = {"sqlite": "sqlite:///example.db"}  # where scheme://localhost is no URL of the backend; nothing is opened


def capabilities(
    context: typer.Context,
    schemes: Annotated[list[str] | None, typer.Argument(help="Left out: all that are installed.")] = None,
) -> None:
    """Compare what the backends can do."""
    session: Session = context.obj
    known = known_schemes()
    for scheme in schemes or ():
        if scheme not in known:
            raise ConfigError(unknown("backend", scheme, known, where="mqkit"))
    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for scheme in schemes or known:
        try:
            found[scheme] = described(capabilities_of(scheme))
        except MqkitError as exc:
            missing[scheme] = str(exc)
    if session.out.json:
        session.out.document({"backends": found, "unavailable": missing})
    else:
        if found:
            session.out.table(("capability", *found), table_rows(found))
        for scheme, why in missing.items():
            session.out.note(f"{scheme}: {why}")
    if not found:
        raise typer.Exit(_exit.FAILED)


def capabilities_of(scheme: str) -> Capabilities:
    """Raises `ExtraMissing` where the driver is not installed. Connects to nothing."""
    return backend_for(Url.parse(SAMPLES.get(scheme, f"{scheme}://localhost")), SystemClock()).capabilities


def described(can: Capabilities) -> dict[str, Any]:
    """As JSON has it: "any" stands for no limit."""
    fields = dataclasses.asdict(can)
    return {name: "any" if value == math.inf else value for name, value in fields.items() if name != "name"}


def table_rows(found: dict[str, dict[str, Any]]) -> Sequence[Sequence[object]]:
    names = next(iter(found.values()))
    return [[name, *(_cell(each[name]) for each in found.values())] for name in names]


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
