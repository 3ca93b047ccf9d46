"""
Servers that fork their workers from a process whose bus is open: every publish arrives once, and the parent goes on.

Not with SQLite, which does not survive a fork with an open file: there the child is refused (tests/unit/sqlite).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqkit import Bus
from mqkit.testing.brokers import AwsProcess, BrokerProcess, KafkaProcess, RabbitProcess, RedisProcess
from tests.aws_emulators import program_of
from tests.brokers.processes import wait_until
from tests.integration.prefork_program import EACH, visits

pytestmark = pytest.mark.slow
WORKERS = 4
VISITS = 80


BROKERS: dict[str, Callable[[], BrokerProcess]] = {
    "redis": lambda: RedisProcess(appendonly=True),
    "rabbitmq": lambda: RabbitProcess(management=False),
    "kafka": KafkaProcess,
    "sqs": lambda: AwsProcess(program=program_of("ministack")),
}


@pytest.fixture(params=BROKERS, scope="module")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    with BROKERS[request.param]() as broker:
        yield broker.url


def arrived(url: str, count: int) -> Counter[str]:
    """So many messages at least, and what else is there a second later."""
    found: Counter[str] = Counter()
    with Bus(url) as bus, bus.subscription(visits, prefetch=1000) as messages:
        while deliveries := messages.receive(max=1000, timeout=30.0 if found.total() < count else 1.0):
            for delivery in deliveries:
                found[delivery.payload] += 1
                delivery.ack()
    return found


def test_four_children_of_a_process_with_an_open_bus_publish_and_end_as_they_like(url: str) -> None:
    program = [sys.executable, "-m", "tests.integration.prefork_program", url]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")
    expected = [f"parent {number}" for number in range(6)]
    expected += [f"child {child} {number}" for child in range(4) for number in range(EACH)]
    assert arrived(url, len(expected)) == Counter(expected)


def test_an_application_that_gunicorn_loads_once_publishes_from_each_of_its_workers(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    module = "tests.integration.prefork_app"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", str(WORKERS), "--bind", "127.0.0.1:0"]
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*command, "--config", f"python:{module}", f"{module}:app"],
            stderr=out,
            env={**os.environ, "VISITS_URL": url},
        ) as server,
    ):
        try:
            wait_until(lambda: log.read_text().count("Booting worker") == WORKERS, within=30.0)
            address = re.findall(r"Listening at: (http://\S+)", log.read_text())[0]
            pids = {answer(f"{address}/{number}") for number in range(VISITS)}
            os.kill(int(min(pids)), signal.SIGKILL)  # another one is forked, long after the bus was opened
            wait_until(lambda: log.read_text().count("Booting worker") == WORKERS + 1, within=30.0)
            pids |= {answer(f"{address}/{number}") for number in range(VISITS, 2 * VISITS)}
        finally:
            server.terminate()
            try:
                code = server.wait(60.0)
            finally:
                server.kill()  # who has not ended by then would be waited for without end

    found = arrived(url, 2 * VISITS + WORKERS + 3)
    ended = {word for word in found if word.startswith("ended")}
    assert (code, len(pids) > 1) == (0, True)
    assert len(ended) >= 1
    assert found == Counter(["loaded", "ready", *ended, *(f"/{number}" for number in range(2 * VISITS))])


def answer(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10.0) as response:
        text: bytes = response.read()
    return text.decode()
