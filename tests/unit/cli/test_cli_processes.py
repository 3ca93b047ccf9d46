"""The command line as processes see it: imports, signals, restarts."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mqkit import Bus, Queue, Topic
from mqkit.testing.brokers.process import free_ports

if TYPE_CHECKING:
    from tests.unit.cli.conftest import Mqkit, Start

PROGRAM = """
import os
from mqkit import Bus, Queue
bus, emails, moody = Bus(), Queue("emails", dict), Bus("memory://")
@bus.on(emails)
def handle(email: dict) -> None:
    print("handled", os.getpid(), email["n"], flush=True)
def make() -> Bus:
    return bus
def broken() -> Bus:
    raise RuntimeError("no luck")
"""

emails = Queue("emails", dict)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.py"
    path.write_text(PROGRAM)
    return path


def lines_until(process: subprocess.Popen[str], stream: Any, wanted: Callable[[str], bool]) -> str:
    """The first line that is wanted. Fails when the process ends or half a minute passes."""
    deadline, line = time.monotonic() + 30, b""
    while time.monotonic() < deadline and select.select([stream], [], [], deadline - time.monotonic())[0]:
        octet = os.read(stream.fileno(), 1)  # `readline` may keep the next line where `select` cannot see it
        if not octet:
            break
        line += octet
        if octet == b"\n":
            if wanted(line.decode()):
                return line.decode()
            line = b""
    raise AssertionError(f"the line never came; {process.poll()=}")


def ended(process: subprocess.Popen[str], number: int) -> int:
    process.send_signal(number)
    return process.wait(30)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Source: proc(5), /proc/pid/task/tid/children. A thread may end between being listed and being read."""
    children: list[int] = []
    for task in Path(f"/proc/{process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            children += map(int, (task / "children").read_text().split())
    return children


def test_help_imports_no_driver_and_opens_nothing():
    code = (
        "import sys; from mqkit.cli import main; main(['--help']); "
        "print({'pika', 'kafka', 'boto3', 'redis', 'sqlalchemy', 'mqkit.backends.sqlite'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"


def test_without_the_extra_the_install_command_is_printed():
    code = "import sys; sys.modules['typer'] = None; from mqkit.cli import main; sys.exit(main(['stats']))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "pip install 'mqkit[cli]'" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_installed_command_is_the_module(start: Start):
    script = Path(sys.executable).with_name("mqkit")
    process = start("stats", command=[str(script)])
    assert process.wait(30) == 3  # there is no file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_tail_and_its_group(start: Start, mqkit: Mqkit, bus: Bus, number: int):
    orders = Topic("orders", dict, key=lambda order: order["n"])
    bus.declare(orders)
    process = start("tail", "topic:orders", "--json")
    while mqkit("stats", "topic:orders", "--json").json["sources"][0]["source"] == "topic:orders":
        pass
    bus.publish(orders, {"n": "1"})
    assert json.loads(lines_until(process, process.stdout, bool))["body"] == '{"n":"1"}'

    assert ended(process, number) == 0
    assert [row["source"] for row in mqkit("stats", "--json").json["sources"]] == ["topic:orders"]


def test_the_group_of_a_killed_tail_is_removed_by_the_next(start: Start, mqkit: Mqkit, bus: Bus):
    bus.declare(Topic("orders"))
    process = start("tail", "topic:orders")
    while mqkit("stats", "topic:orders", "--json").json["sources"][0]["source"] == "topic:orders":
        pass
    ended(process, signal.SIGKILL)
    assert "collects messages" in mqkit("doctor").out

    mqkit("tail", "topic:orders", "--no-follow")

    assert [row["source"] for row in mqkit("stats", "--json").json["sources"]] == ["topic:orders"]


def test_a_closed_pipe_ends_a_tail_quietly(url: str, bus: Bus):
    for n in range(2000):
        bus.publish_soon(emails, {"n": n, "filling": "x" * 200})
    bus.flush()
    command = f"{sys.executable} -m mqkit.cli --url {url} tail emails | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=True, timeout=30)
    assert len(ran.stdout.splitlines()) == 1
    assert "Traceback" not in ran.stderr
    assert "BrokenPipe" not in ran.stderr


def test_what_a_terminal_cannot_show_is_shown_by_its_number(start: Start, bus: Bus, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    bus.publish(Queue("texts", str), "\u65e5")
    out, err = start("tail", "texts", "--no-follow").communicate(timeout=30)
    assert r"\u65e5" in out
    assert "Traceback" not in err


@pytest.mark.parametrize("target", ["shop:bus", "shop:make"])
def test_run_consumes_until_a_signal(start: Start, shop: Path, bus: Bus, target: str):
    bus.publish(emails, {"n": 1})
    process = start("run", target)
    assert "handled" in lines_until(process, process.stdout, bool)
    assert ended(process, signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("shop", "MODULE:NAME"),
        ("nowhere:bus", "no module"),
        ("shop:nothing", "has no 'nothing'"),
        ("shop:emails", "neither a Bus"),
        ("shop:broken", "no luck at"),
        ("shop:moody", "names its URL itself"),
    ],
)
def test_a_wrong_target_is_one_sentence(start: Start, shop: Path, target: str, says: str):
    process = start("run", target)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert says in err
    assert "Traceback" not in err


def health(port: int, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
    except OSError:
        return 0, None


def until(question: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not question():
        assert time.monotonic() < deadline


@pytest.fixture
def port() -> int:
    return free_ports(1)[0]


def test_probes_are_answered_while_it_runs(start: Start, shop: Path, port: int):
    process = start("run", "shop:bus", "--health-port", str(port))
    until(lambda: health(port, "/ready")[0] == 200)
    assert health(port, "/live") == (200, {"live": True, "ready": True, "reasons": []})
    assert health(port, "/other")[0] == 404
    assert ended(process, signal.SIGINT) == 0


@pytest.mark.slow
def test_a_process_that_dies_is_started_again(start: Start, shop: Path, port: int):
    process = start("run", "shop:bus", "--processes", "2", "--health-port", str(port))
    until(lambda: health(port, "/ready")[0] == 200)
    before = children_of(process)
    os.kill(before[0], signal.SIGKILL)

    until(lambda: health(port, "/ready")[0] == 503)
    until(lambda: health(port, "/ready")[0] == 200)

    assert len(set(children_of(process)) - set(before)) == 1
    assert ended(process, signal.SIGTERM) == 0


@pytest.mark.slow
def test_a_handler_that_ends_its_process_with_the_code_of_a_usage_error_does_not_end_all(
    start: Start, shop: Path, bus: Bus
):
    shop.write_text(PROGRAM.replace('email["n"], flush=True)', 'email["n"], flush=True); os._exit(2)'))
    bus.publish(emails, {"n": 1})
    process = start("run", "shop:bus", "--processes", "2")

    pids = {lines_until(process, process.stdout, bool).split()[1] for _ in range(3)}

    assert len(pids) == 3
    ended(process, signal.SIGTERM)


@pytest.mark.slow
def test_processes_end_with_their_parent(start: Start, shop: Path, bus: Bus):
    process = start("run", "shop:bus", "--processes", "2")
    bus.publish(emails, {"n": 1})
    lines_until(process, process.stdout, bool)
    pids = children_of(process)
    ended(process, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


@pytest.mark.slow
def test_processes_that_cannot_start_are_not_tried_for_ever(start: Start, shop: Path):
    process = start("run", "shop:nothing", "--processes", "2")
    assert process.wait(30) == 2


@pytest.mark.slow
def test_a_changed_file_is_taken_up(start: Start, shop: Path, bus: Bus):
    process = start("run", "shop:bus", "--reload")
    bus.publish(emails, {"n": 1})
    lines_until(process, process.stdout, lambda line: "handled" in line)
    shop.write_text("this is no Python")
    lines_until(process, process.stderr, lambda line: "cannot be imported" in line)

    shop.write_text(PROGRAM.replace("handled", "seen"))
    bus.publish(emails, {"n": 2})

    assert "seen" in lines_until(process, process.stdout, bool)
    assert ended(process, signal.SIGTERM) == 0


def test_processes_do_not_show_the_url_in_their_command_line(start: Start, shop: Path, bus: Bus, url: str):
    process = start("run", "shop:bus", "--processes", "2")
    bus.publish(emails, {"n": 1})
    lines_until(process, process.stdout, bool)
    for pid in children_of(process):
        assert url.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert ended(process, signal.SIGTERM) == 0
