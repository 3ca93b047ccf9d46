"""`mqkit stats`: how much waits where."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.live import Live

from mqkit._stopping import stopping
from mqkit.backends.base import Address, Admin, Depth
from mqkit.cli import _exit
from mqkit.cli._output import console, table_of
from mqkit.cli._session import Session, admin_of, require
from mqkit.cli._target import address_of

COLUMNS = ("source", "ready", "inflight", "delayed", "dead")


def stats(
    context: typer.Context,
    sources: Annotated[list[str] | None, typer.Argument(help="Left out: all. topic:orders is all its groups.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again and again, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
) -> None:
    """Show how many messages are ready, in hand, delayed and dead, per source."""
    session: Session = context.obj
    wanted = [address_of(source) for source in sources or ()]
    with session.bus() as bus, admin_of(bus) as admin:
        for address in wanted:
            require(admin, address)
        if watch:
            _watch(session, admin, wanted, interval)
            return
        rows = rows_of(admin.describe(), wanted)
        if session.out.json:
            session.out.document(_document(rows))
        elif rows:
            session.out.table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows])
        else:
            session.out.note("nothing is declared there yet")
    if not rows:
        raise typer.Exit(_exit.NOTHING)


def rows_of(depths: Sequence[Depth], wanted: Sequence[Address]) -> list[dict[str, Any]]:
    """One row per source with its dead letters in it, by name."""
    dead = {depth.address: depth for depth in depths if depth.address.dead}
    rows = []
    for depth in sorted((one for one in depths if not one.address.dead), key=lambda one: one.address):
        address = depth.address
        if wanted and address not in wanted and address._replace(group="") not in wanted:
            continue
        letters = dead.get(address.dead_letters)
        rows.append(
            {
                "source": str(address),
                "kind": address.kind,
                "ready": depth.ready,
                "inflight": depth.inflight,
                "delayed": depth.delayed,
                "dead": letters.ready + letters.inflight + letters.delayed if letters is not None else 0,
            }
        )
    return rows


def _watch(session: Session, admin: Admin, wanted: Sequence[Address], interval: float) -> None:
    with stopping() as stop:
        if session.out.json:
            while True:
                session.out.document(_document(rows_of(admin.describe(), wanted)))
                if stop.wait(interval):
                    return
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                rows = rows_of(admin.describe(), wanted)
                live.update(table_of(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]), refresh=True)
                if stop.wait(interval):
                    return


def _document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"at": time.time(), "sources": rows}
