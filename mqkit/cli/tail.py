"""`mqkit tail`: messages as they come, without taking them from anybody."""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from mqkit._stopping import stopping
from mqkit.backends.base import Address, Admin, Backend, Declaration, Done, Received, Start
from mqkit.cli import _exit
from mqkit.cli._output import body_text, record_of
from mqkit.cli._session import Session, admin_of, backend_of, require
from mqkit.cli._target import address_of
from mqkit.errors import TopologyMismatch
from mqkit.message import message_of

PREFIX = "mqkit-tail-"  # groups of this command
WHOLE_MACHINE = 0xEFFFFFFC  # the namespace of process ids outside of containers; linux/proc_ns.h, PROC_PID_INIT_INO
SLICE = 0.5  # seconds one wait blocks, so that a signal is noticed
QUIET = 1.0  # seconds without a message that end --no-follow
LOOK = 1.0  # seconds between two looks at a queue
ROOM = 100


def tail(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="topic:orders, broadcast:ticks, emails or orders/billing.")],
    limit: Annotated[int | None, typer.Option(help="End after so many messages.", min=1)] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more, or show what is there.")] = True,
    start: Annotated[
        Literal["latest", "earliest"], typer.Option(help="Of a topic that retains: from where.")
    ] = "latest",
) -> None:
    """
    Show messages. Nobody misses one because of it.

    A topic is read through a group of its own, deleted at the end; a broadcast is listened to. A queue or group is
    looked at without consuming: what is taken between two looks is not seen.
    """
    session: Session = context.obj
    address = address_of(source)
    shown = 0
    with session.bus() as bus, stopping() as stop:
        with admin_of(bus) as admin:
            require(admin, address)
            if address.kind == "queue" or address.group:
                session.out.note(f"looking at {address} without consuming; what others take meanwhile is not seen")
                messages = looked_at(admin, address, stop, follow)
            else:
                messages = received(backend_of(bus), admin, address, stop, follow, start)
            for one in messages:
                _show(session, one)
                shown += 1
                if shown == limit:
                    break
            messages.close()  # type: ignore[attr-defined]  # a generator: what it opened is closed now
    if not shown and not follow:
        raise typer.Exit(_exit.NOTHING)


def looked_at(admin: Admin, address: Address, stop: threading.Event, follow: bool) -> Iterator[Received]:
    """What waits there, then what came since the last look."""
    seen: set[str] = set()
    while not stop.is_set():
        waiting: set[str] = set()
        after: str | None = None
        while page := admin.browse(address, limit=ROOM, after=after):
            for one in page:
                waiting.add(one.id)
                if one.id not in seen:
                    yield one
            after = page[-1].id
        seen = waiting
        if not follow or stop.wait(LOOK):
            return


def received(
    backend: Backend, admin: Admin, address: Address, stop: threading.Event, follow: bool, start: Start
) -> Iterator[Received]:
    with _listening(admin, address, start) as declaration:
        receiver = backend.receiver(declaration, ROOM)
        try:
            quiet_since = time.monotonic()
            while not stop.is_set():
                turn = receiver.receive(ROOM, SLICE)
                receiver.settle([Done(one) for one in turn.deliveries])
                if turn.deliveries:
                    yield from turn.deliveries
                    quiet_since = time.monotonic()
                elif not follow and time.monotonic() - quiet_since > QUIET:
                    return
        finally:
            receiver.flush(SLICE)
            receiver.close()


@contextmanager
def _listening(admin: Admin, address: Address, start: Start) -> Iterator[Declaration]:
    """A broadcast as it is; of a topic a group that lives as long as this process."""
    if address.kind == "broadcast":
        yield Declaration(address)
        return
    _sweep(admin, address)
    group = address._replace(group=f"{PREFIX}{place()}-{os.getpid()}-{secrets.token_hex(3)}")
    declaration = Declaration(group, start=start)
    try:
        try:
            admin.declare([declaration])
        except TopologyMismatch:  # the topic declares key=
            declaration = Declaration(group, start=start, keyed=True)
            admin.declare([declaration])
        yield declaration
    finally:
        admin.delete(group)


def _sweep(admin: Admin, address: Address) -> None:
    """Groups of this command that a kill left behind on this machine would fill for ever."""
    for depth in admin.describe():
        one = depth.address
        if one.name == address.name and one.kind == "topic" and not one.dead and abandoned(one.group):
            admin.delete(one)


def place() -> str:
    """Where process ids mean what they mean here. Containers may share a host name, and number their processes alike."""
    host = socket.gethostname()[:60]
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
        if space == WHOLE_MACHINE:
            return host
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:  # not Linux
        return host
    return f"{host}-{boot}-{space}"


def abandoned(group: str) -> bool:
    """Does the group belong to a tail on this machine whose process is gone?"""
    mine = f"{PREFIX}{place()}-"
    pid = group.removeprefix(mine).partition("-")[0]
    if not group.startswith(mine) or not re.fullmatch("[0-9]{1,9}", pid):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _show(session: Session, one: Received) -> None:
    if session.out.json:
        session.out.document({**record_of(message_of(one)), "source": str(one.address), "attempt": one.attempt})
        return
    key = f" key={one.key}" if one.key is not None else ""
    headers = "".join(f" {name}={value}" for name, value in one.headers.items())
    session.out.say(f"{one.id}{key}{headers} {body_text(one.body)}")
