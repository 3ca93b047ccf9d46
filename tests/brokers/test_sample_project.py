"""A project of somebody else's, with mqkit installed: its one test module runs on every backend, by process and by container."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import docker
import pytest

from tests.brokers.images import client, image_of

__all__ = ["client"]
pytestmark = pytest.mark.slow

SHOP = """
from mqkit import Delivery, Handlers, Queue, Reject, Retry, fixed

orders = Queue("orders", dict[str, int])
handlers = Handlers()
seen: list[tuple[int, int]] = []


@handlers.on(orders, retry=Retry(attempts=3, backoff=fixed(0.01)))
def take(order: dict[str, int], delivery: Delivery[dict[str, int]]) -> None:
    seen.append((order["number"], delivery.attempt))
    if order["number"] == 1 and delivery.attempt == 1:
        raise ConnectionError("the dependency is away")
    if order["number"] == 2:
        raise Reject("nobody wants it")
""".lstrip()

TESTS = """
import time

import pytest
import shop

from mqkit import Queue
from mqkit.testing import run_until_idle

numbers = Queue("numbers", int)


def test_orders_are_taken_repeated_and_refused(mqkit_bus):
    shop.seen.clear()
    mqkit_bus.include(shop.handlers)
    for number in range(4):
        mqkit_bus.publish(shop.orders, {"number": number})

    trace = run_until_idle(mqkit_bus, timeout=30.0)

    assert sorted(shop.seen) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1)]
    assert sorted(attempt.outcome for attempt in trace.of("orders")) == ["dead", "done", "done", "done", "retry"]
    assert [letter.reason for letter in mqkit_bus.dead_letters(shop.orders).list()] == ["nobody wants it"]


def test_each_test_begins_with_nothing(mqkit_bus):
    assert mqkit_bus.dead_letters(shop.orders).list() == []


@pytest.mark.mqkit_needs("survives_process")
def test_what_is_published_is_there_for_another_bus(mqkit_bus, mqkit_url):
    mqkit_bus.publish(numbers, 1)
    with type(mqkit_bus)(mqkit_url) as other, other.subscription(numbers) as messages:
        [delivery] = messages.receive(timeout=10.0)
        delivery.ack()
    assert delivery.payload == 1


@pytest.mark.mqkit_needs("delay")
def test_a_delay_is_kept(mqkit_bus):
    began = time.monotonic()
    mqkit_bus.publish(numbers, 2, delay=0.3)
    with mqkit_bus.subscription(numbers) as messages:
        [delivery] = messages.receive(timeout=10.0)
        delivery.ack()
    assert time.monotonic() - began > 0.29
""".lstrip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    options = "--mqkit-backends=memory,sqlite,rabbitmq,redis --mqkit-require -p no:cacheprovider -rA"
    (tmp_path / "pyproject.toml").write_text(
        f'[project]\nname = "shop"\nversion = "1"\n\n[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = "{options}"\n'
    )
    return tmp_path


def run(project: Path, *options: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MQKIT_", "PYTEST_"))}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=project,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two processes"])
def test_it_runs_on_four_backends_as_processes(project: Path, processes: list[str]) -> None:
    shown = run(project, "--mqkit-provider=native", *processes)

    assert "15 passed, 1 skipped" in shown
    assert "mqkit: rabbitmq from process" in shown
    assert "mqkit: redis from process" in shown
    assert "survives_process" in shown  # why the one on memory was skipped


@pytest.mark.timeout(300)
def test_it_runs_on_four_backends_in_containers(project: Path, client: docker.DockerClient) -> None:
    images = {
        "MQKIT_TEST_RABBITMQ_IMAGE": image_of(client, "rabbitmq:4"),
        "MQKIT_TEST_REDIS_IMAGE": image_of(client, "redis:8"),
    }
    shown = run(project, "--mqkit-provider=container", **images)

    assert "15 passed, 1 skipped" in shown
    assert "mqkit: rabbitmq from container" in shown
    assert "mqkit: redis from container" in shown
