"""The final table, and what does not add up in it. Pure: from receipts and dead letters to text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from examples.orders.contracts import SERVICES, Order, Service
from examples.orders.ledger import Ledger

HEAD = ("service", "published", "done", "retried", "dead", "discs done", "discs dead", "dollars done", "dollars dead")


@dataclass(frozen=True, slots=True)
class Row:
    """One service: orders in all, done, done after a failed attempt, dead; then discs and cents of done and dead."""

    service: Service
    published: int
    done: int
    retried: int
    dead: int
    discs: tuple[int, int]
    cents: tuple[int, int]


def rows_of(found: Sequence[Order], ledger: Ledger, dead: Mapping[Service, Collection[int]]) -> list[Row]:
    """
    Args:
        found: The orders that were published.
        dead: The numbers of the orders in each service's dead letters.
    """
    by_number = {order.number: order for order in found}
    rows = []
    for service in SERVICES:
        done = ledger.of(service)
        refused = [by_number[number] for number in dead[service]]
        rows.append(
            Row(
                service=service,
                published=len(found),
                done=len(done),
                retried=sum(receipt.attempt > 1 for receipt in done),
                dead=len(refused),
                discs=(sum(receipt.quantity for receipt in done), sum(order.quantity for order in refused)),
                cents=(sum(receipt.cents for receipt in done), sum(order.cents for order in refused)),
            )
        )
    return rows


def faults(rows: Sequence[Row], found: Sequence[Order]) -> list[str]:
    """What does not add up, in sentences."""
    discs, cents = sum(order.quantity for order in found), sum(order.cents for order in found)
    wrong = []
    for row in rows:
        if row.done + row.dead != row.published:
            wrong.append(f"{row.service}: {row.done:,} done and {row.dead:,} dead of {row.published:,} published")
        if sum(row.discs) != discs:
            wrong.append(f"{row.service}: {sum(row.discs):,} discs and the file has {discs:,}")
        if sum(row.cents) != cents:
            wrong.append(f"{row.service}: {dollars(sum(row.cents))} dollars and the file has {dollars(cents)}")
    return wrong


def table(rows: Sequence[Row]) -> str:
    cells: list[tuple[str, ...]] = [HEAD]
    for row in rows:
        numbers = (row.published, row.done, row.retried, row.dead, *row.discs)
        cells.append((row.service, *(f"{number:,}" for number in numbers), *map(dollars, row.cents)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in cells)
    )


def dollars(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"
