"""Runs the shop: publishes every order, waits for the services, repairs one refusal, and adds everything up."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from examples.orders import ledger, payment, publisher, statistics, stock
from examples.orders.contracts import SERVICES, Order, Service, approved, orders, receipts
from examples.orders.ledger import Ledger
from examples.orders.progress import progress
from examples.orders.report import faults, rows_of, table
from examples.orders.service import quiet
from mqkit import Bus, MqkitError

STALL = 30.0  # seconds without any progress after which the demo gives up
MANY = publisher.FACTS[0]  # no service can refuse more
LOOK = 0.1  # seconds between two looks at how far the services are


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.orders.demo", description=__doc__)
    parser.add_argument("--url", help="a broker, such as sqlite:///shop.db or memory://; left out: SQLite, temporary")
    options = parser.parse_args(arguments)
    quiet()
    with ExitStack() as stack:
        url = options.url
        if url is None:
            url = f"sqlite:///{stack.enter_context(tempfile.TemporaryDirectory())}/shop.db"
        try:
            return run(url)
        except MqkitError as exc:
            print(f"demo: {exc}", file=sys.stderr)
            return 2


def run(url: str) -> int:
    """0 when everything adds up."""
    found = publisher.read()
    book = Ledger()
    bus = shop(url, book)
    began = time.monotonic()
    try:
        bus.declare(orders, approved, receipts)
        with services(url) as alive, bus.worker(only=only(url)), progress(len(SERVICES) * len(found)) as tell:
            for _ in publisher.publish(bus, found):
                tell("publishing", len(book))
            wait(bus, book, found, alive, tell)
            repaired = repair(bus)
            wait(bus, book, found, alive, tell)
        rows = rows_of(found, book, dead_letters(bus))
        refusals = reasons(bus)
    finally:
        bus.close()
    print(f"\n{len(found):,} orders in {time.monotonic() - began:.1f} s\n\n{table(rows)}\n")
    print("\n".join(refusals))
    print(f"{repaired} was refused as free, then approved and replayed")
    wrong = faults(rows, found)
    print("\n".join(wrong) if wrong else "everything adds up", file=sys.stderr if wrong else sys.stdout)
    return 1 if wrong else 0


def shop(url: str, book: Ledger) -> Bus:
    """The bus of this process. With `memory://`, which no other process can reach, all services are on it."""
    bus = Bus(url)
    bus.include(ledger.bus)
    bus.provide(Ledger, lambda: book, per="worker")
    if not shared(url):
        bus.include(payment.bus, stock.bus, statistics.bus)
    return bus


def shared(url: str) -> bool:
    return not url.startswith("memory:")


def only(url: str) -> list[str] | None:
    return [receipts.name] if shared(url) else None


@contextmanager
def services(url: str) -> Iterator[Callable[[], None]]:
    """Each service in a process of its own while inside; the function raises when one of them has ended."""
    running: dict[str, subprocess.Popen[bytes]] = {}

    def alive() -> None:
        for name, process in running.items():
            if process.poll() is not None:
                raise RuntimeError(f"the {name} service ended with status {process.returncode}")

    try:
        for name in SERVICES if shared(url) else ():
            command = [sys.executable, "-m", f"examples.orders.{name}"]
            running[name] = subprocess.Popen(command, env={**os.environ, "MQKIT_URL": url})
        yield alive
        alive()
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(timeout=STALL)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def wait(
    bus: Bus, book: Ledger, found: Sequence[Order], alive: Callable[[], None], tell: Callable[[str, int], None]
) -> None:
    """Until every service has done or refused every order. Raises `RuntimeError` when nothing moves any more."""
    reached, done, refused, moved = -1, -1, 0, time.monotonic()
    while True:
        alive()
        before, done = done, len(book)
        if done == before:  # no receipts come any more: only now is it worth the trips to look at dead letters
            refused = sum(len(numbers) for numbers in dead_letters(bus).values())
        now = done + refused
        tell("done or refused", now)
        if now >= len(SERVICES) * len(found):
            return
        if now != reached:
            reached, moved = now, time.monotonic()
        elif time.monotonic() - moved > STALL:
            raise RuntimeError(f"nothing moved for {STALL:g} s; {now:,} of {len(SERVICES) * len(found):,} are done")
        time.sleep(LOOK)


def dead_letters(bus: Bus) -> dict[Service, set[int]]:
    """The numbers of the orders that each service refused."""
    return {
        service: {
            int(letter.id.removeprefix("order-")) for letter in bus.dead_letters(orders, group=service).list(limit=MANY)
        }
        for service in SERVICES
    }


def reasons(bus: Bus) -> list[str]:
    """How often each service refused for which reason."""
    counts: dict[str, int] = {}
    for service in SERVICES:
        for letter in bus.dead_letters(orders, group=service).list(limit=MANY):
            why = letter.error_type if letter.error_type not in ("", "Reject") else letter.reason
            counts[f"{service}: {why}"] = counts.get(f"{service}: {why}", 0) + 1
    return [f"{count:,} refused by {reason}" for reason, count in sorted(counts.items())]


def repair(bus: Bus) -> str:
    """Approve the first free order: its dead letter moves to the queue of orders that are charged as they are."""
    refused = bus.dead_letters(orders, group="payment")
    [letter] = refused.list(limit=1, where=lambda letter: letter.reason == "free order needs approval")
    if not refused.replay([letter.id], to=approved):
        raise RuntimeError(f"{letter.id} could not be replayed")
    return letter.id


if __name__ == "__main__":
    sys.exit(main())
