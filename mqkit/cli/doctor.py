"""`mqkit doctor`: does messaging work from here, how fast, and what should one know?"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import typer

from mqkit import config
from mqkit._url import Url
from mqkit.backends.base import Address, Backend, Declaration, Done
from mqkit.bus import Bus
from mqkit.cli import _exit
from mqkit.cli._session import Session, admin_of, backend_of
from mqkit.cli._target import value_of
from mqkit.cli.capabilities import described
from mqkit.cli.tail import PREFIX
from mqkit.errors import MqkitError, TimedOut

TIMEOUT = 10.0  # seconds for a connection, and for the round trip


class Finding(NamedTuple):
    """What one check found."""

    check: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    seconds: float | None = None


def doctor(context: typer.Context) -> None:
    """Connect, send a message through a queue of its own and back, and say what is noteworthy. Shows no secrets."""
    session: Session = context.obj
    findings: list[Finding] = []
    can: dict[str, Any] = {}
    with session.bus() as bus:
        try:
            for finding in examine(bus, session):
                findings.append(finding)
                if not session.out.json:
                    took = "" if finding.seconds is None else f" ({finding.seconds * 1000:.1f} ms)"
                    session.out.say(f"{finding.status:8} {finding.check}: {finding.detail}{took}")
            can = described(backend_of(bus).capabilities)
        except MqkitError as exc:
            if not findings:  # without a URL there is nothing to examine
                raise
            failed = Finding("broker", "failed", _exit.line_of(exc))
            findings.append(failed)
            if not session.out.json:
                session.out.say(f"{failed.status:8} {failed.check}: {failed.detail}")
    ok = all(finding.status != "failed" for finding in findings)
    if session.out.json:
        session.out.document({"ok": ok, "checks": [one._asdict() for one in findings], "capabilities": can})
    if not ok:
        raise typer.Exit(_exit.FAILED)


def examine(bus: Bus, session: Session) -> Iterator[Finding]:
    """Raises what the broker raises; the findings so far have been handed out."""
    settings = config.load(bus.name, session.resolved_url())
    yield Finding("url", "ok", f"{Url.parse(settings.url)} from {origin(bus.name, session.url)}")
    with admin_of(bus) as admin:  # before anything that publishes, which makes what is missing
        admin.describe()
    began = time.monotonic()
    bus.open(timeout=TIMEOUT)
    yield Finding("connect", "ok", "connected", time.monotonic() - began)
    took = round_trip(bus, backend_of(bus))
    yield Finding("round trip", "ok", "published, received and settled one message", took)
    backend = backend_of(bus)
    can = backend.capabilities
    if can.durable != "yes":
        yield Finding("durability", "warning", f"messages survive the death of the server's process: {can.durable}")
    for warning in backend.warnings():
        yield Finding("backend", "warning", warning)
    with admin_of(bus) as admin:
        left = sorted(
            str(one.address)
            for one in admin.describe()
            if one.address.group.startswith(PREFIX) and not one.address.dead
        )
    for name in left:
        yield Finding(
            "tail", "warning", f"{name} collects messages for a tail; one that was killed is removed by the next"
        )


def origin(name: str, given: str | None) -> str:
    """Which of the places the URL came from."""
    if given is not None:
        return f"--url {given}" if given.startswith(("env:", "file:")) else "--url"
    variable = config.variable_of(name)
    if os.environ.get(variable):
        return variable
    _, where = config._bus_table(name, os.environ.get(config.PROFILE, ""), Path.cwd())
    return where


def round_trip(bus: Bus, backend: Backend) -> float:
    """Seconds from publishing to having received and settled, on a queue that exists only for this."""
    address = Address("queue", f"mqkit-doctor-{secrets.token_hex(6)}")
    declaration = Declaration(address)
    with admin_of(bus) as admin:
        admin.declare([declaration])
        try:
            receiver = backend.receiver(declaration, 1)
            try:
                began = time.monotonic()
                id = bus.publish(value_of(address), b"{}", timeout=TIMEOUT)
                while True:
                    turn = receiver.receive(1, 1.0)
                    receiver.settle([Done(one) for one in turn.deliveries])
                    if any(one.id == id for one in turn.deliveries):
                        receiver.flush(1.0)
                        return time.monotonic() - began
                    if time.monotonic() - began > TIMEOUT:
                        raise TimedOut(f"a message published to {address} did not come back within {TIMEOUT:g} s")
            finally:
                receiver.close()
        finally:
            admin.delete(address)
