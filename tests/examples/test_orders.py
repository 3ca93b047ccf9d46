"""The shop of examples/orders: the same application and the same table in one process and in four."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.orders import demo, ledger, payment, publisher, statistics, stock
from examples.orders.contracts import Order, Receipt
from examples.orders.ledger import Ledger
from examples.orders.report import faults, rows_of, table
from mqkit import Bus
from mqkit.testing import Trace, VirtualClock, run_until_idle
from mqkit.testing.brokers import AwsProcess, BrokerProcess, KafkaProcess, RabbitProcess, RedisProcess

ROOT = Path(__file__).parents[2]
LONGEST = 400.0  # seconds of one demo; an emulator on a machine with other work needs some hundred

TABLE = """\
service     published   done  retried  dead  discs done  discs dead  dollars done  dollars dead
payment         6,919  6,868      138    51      15,742         737    232,165.63     11,926.31
stock           6,919  6,840        0    79      15,283       1,196    227,389.06     16,702.88
statistics      6,919  6,919        0     0      16,479           0    244,091.94          0.00"""


def shop_in_memory(book: Ledger) -> Bus:
    bus = Bus("memory://", clock=VirtualClock())
    bus.include(payment.bus, stock.bus, statistics.bus, ledger.bus)
    bus.provide(Ledger, lambda: book, per="worker")
    return bus


@pytest.fixture(scope="module")
def found() -> list[Order]:
    return publisher.read()


@pytest.fixture(scope="module")
def worked(found: Sequence[Order]) -> tuple[Bus, Ledger, Trace]:
    book = Ledger()
    bus = shop_in_memory(book)
    list(publisher.publish(bus, found))
    return bus, book, run_until_idle(bus, timeout=60.0)


def test_the_virtual_shop_ends_with_the_table_of_the_demo(found: Sequence[Order], worked: tuple[Bus, Ledger, Trace]):
    bus, book, _ = worked
    assert "8 refused by payment: free order needs approval" in demo.reasons(bus)

    assert demo.repair(bus) == "order-226"
    run_until_idle(bus).raise_first()

    rows = rows_of(found, book, demo.dead_letters(bus))
    assert table(rows) == TABLE
    assert faults(rows, found) == []
    assert demo.reasons(bus) == [
        "7 refused by payment: free order needs approval",
        "44 refused by payment: manual review above 200 dollars",
        "79 refused by stock: TooManyDiscs",
    ]


def test_each_customer_is_charged_in_the_order_of_purchase_although_every_50th_charge_is_repeated(
    found: Sequence[Order], worked: tuple[Bus, Ledger, Trace]
):
    _, _, trace = worked
    customers = {f"order-{order.number}": order.customer for order in found}

    attempts: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for one in trace.of("orders", "payment"):
        attempts[customers[one.message_id]].append((int(one.message_id.removeprefix("order-")), one.attempt))

    assert sum(attempt == 2 for made in attempts.values() for _, attempt in made) == 138
    assert all(made == sorted(made) for made in attempts.values())


def test_a_lost_receipt_is_noticed(found: Sequence[Order]):
    everything = Ledger()
    for order in found[1:]:
        everything.add(Receipt("stock", order.number, order.quantity, order.cents, 1))

    rows = rows_of(found, everything, {"payment": {order.number for order in found}, "stock": set(), "statistics": ()})

    assert faults([row for row in rows if row.service == "payment"], found) == []
    assert faults([row for row in rows if row.service == "stock"], found) == [
        "stock: 6,918 done and 0 dead of 6,919 published",
        "stock: 16,477 discs and the file has 16,479",
        "stock: 244,062.61 dollars and the file has 244,091.94",
    ]


def demo_of(*arguments: str) -> str:
    command = [sys.executable, "-m", "examples.orders.demo", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize(
    ("url", "says"), [("bad", "scheme://"), ("nosuch://host", "nosuch"), ("sqlite:////nowhere/x.db", "nowhere")]
)
def test_the_demo_says_in_one_line_what_is_wrong_with_its_url(url: str, says: str, capsys: pytest.CaptureFixture[str]):
    assert demo.main(["--url", url]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("demo: ")
    assert says in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_the_demo_adds_up_in_four_processes():
    shown = demo_of()
    assert TABLE in shown
    assert shown.endswith("everything adds up\n")


@pytest.mark.slow
def test_the_demo_adds_up_in_one_process():
    assert TABLE in demo_of("--url", "memory://")


@pytest.mark.slow
def test_the_demo_adds_up_twice_on_the_same_broker(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/shop.db"
    demo_of("--url", url)
    assert TABLE in demo_of("--url", url)


@pytest.mark.slow
@pytest.mark.timeout(LONGEST + 50)
@pytest.mark.parametrize("kind", [RedisProcess, RabbitProcess, KafkaProcess, AwsProcess])
def test_the_demo_adds_up_on_a_server_by_its_url_alone(kind: type[BrokerProcess]):
    with kind() as broker:
        url = broker.url
        if broker.management_url is not None:
            url += f"?management=http://127.0.0.1:{broker.management_url.rpartition(':')[2]}"
        assert TABLE in demo_of("--url", url)
