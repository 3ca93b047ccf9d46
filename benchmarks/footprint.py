"""What a process needs before it does anything: memory beside a long queue, and the time to import mqkit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.sample import Sample
from benchmarks.sqlite import documents, file_url
from mqkit import Bus

MEGABYTES, MILLISECONDS = "MB grown", "ms"
FORBIDDEN = (
    "typer",
    "rich",
    "click",
    "pytest",
    "pydantic",
    "pika",
    "kafka",
    "boto3",
    "botocore",
    "redis",
    "sqlalchemy",
)

_FILL = "import sys; from benchmarks.sqlite import documents, fill; from mqkit import Bus\nwith Bus(sys.argv[1]) as bus: fill(bus, 100_000)"
_IMPORT = "import time; began = time.perf_counter(); import {0}; print((time.perf_counter() - began) * 1000)"


def slow_consumer() -> Sample:
    """100,000 messages of 1 KiB wait, filled in by another process, and a handler takes 5 ms for each."""
    handled = 0
    with file_url() as url:
        subprocess.run([sys.executable, "-c", _FILL, url], check=True)
        bus = Bus(url)

        @bus.on(documents)
        def handle(document: dict[str, str]) -> None:
            nonlocal handled
            handled += 1
            time.sleep(0.005)

        with bus:
            before = _resident()
            most = before
            with bus.worker(grace=1.0):
                until = time.monotonic() + 8.0
                while time.monotonic() < until:
                    time.sleep(0.1)
                    most = max(most, _resident())
        if not handled:
            raise ValueError("nothing was handled")
        return {MEGABYTES: (most - before) / 2**20}


def import_mqkit() -> Sample:
    """With its bytecode at hand, as pip leaves an installed package."""
    loaded = _python(f"import sys, mqkit; print(*[name for name in {FORBIDDEN!r} if name in sys.modules])")
    if loaded:
        raise ValueError(f"import mqkit brings {loaded} along")
    return {MILLISECONDS: float(_python(_IMPORT.format("mqkit")))}


def import_msgspec() -> Sample:
    return {MILLISECONDS: float(_python(_IMPORT.format("msgspec, concurrent.futures, asyncio")))}


def _python(code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    ).stdout.strip()


def _resident() -> int:
    """Bytes of this process in memory. Source: proc(5), statm, in pages."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
