"""Command lines, run in this process or in one of their own, on a SQLite file."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mqkit import Bus
from mqkit.cli import main


class Ran(NamedTuple):
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Mqkit = Callable[..., Ran]


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in os.environ if name.startswith("MQKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/mq.db"


@pytest.fixture
def mqkit(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mqkit]:
    """`mqkit("stats", "--json")`, in this process."""
    log = logging.getLogger("mqkit")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate

    def call(*words: str, stdin: bytes = b"", url: str | None = url) -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([*words] if url is None else ["--url", url, *words])
        return Ran(code, *capsys.readouterr())

    yield call
    # `run` logs to what is stderr now, which is closed when a thread of another test has something to say.
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def bus(url: str) -> Iterator[Bus]:
    bus = Bus(url)
    yield bus
    bus.close()


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    """`start("run", "shop:bus")` in a process of its own, which is gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str, command: Sequence[str] = (sys.executable, "-m", "mqkit.cli")) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, "--url", url, *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
