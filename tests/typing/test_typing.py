"""What mypy and pyright accept and refuse in programs that use mqkit, line by line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FILES = ("accepted.py", "refused.py")

pytestmark = pytest.mark.slow

Lines = dict[tuple[str, int], str]  # file and line, with what was said there first


@cache
def mypy() -> Lines:
    command = [sys.executable, "-m", "mypy", "--strict", f"--config-file={os.devnull}", "--no-error-summary"]
    said = _output(*command, "--hide-error-context", "--no-pretty", *_paths())
    found: Lines = {}
    for path, line, text in re.findall(r"^(\S+?):(\d+): error: (.*)$", said, flags=re.MULTILINE):
        found.setdefault((Path(path).name, int(line)), text)
    return found


@cache
def pyright() -> Lines:
    said = _output(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *_paths())
    found: Lines = {}
    for one in json.loads(said)["generalDiagnostics"]:
        if one["severity"] == "error":
            place = (Path(one["file"]).name, one["range"]["start"]["line"] + 1)
            found.setdefault(place, one["message"].splitlines()[0])
    return found


def _paths() -> list[str]:
    return [str(HERE / name) for name in FILES]


def _output(*command: str) -> str:
    environ = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=110)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.stdout


def marked() -> set[tuple[str, int]]:
    return {
        (name, number)
        for name in FILES
        for number, line in enumerate((HERE / name).read_text().splitlines(), start=1)
        if line.endswith("# refused")
    }


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_checker_refuses_the_marked_lines_and_no_others(checker: object):
    assert callable(checker)
    refused: Lines = checker()
    source = {name: (HERE / name).read_text().splitlines() for name in FILES}

    wrongly = [f"{name}:{line} {refused[name, line]}" for name, line in sorted(refused.keys() - marked())]
    missed = [f"{name}:{line} {source[name][line - 1].strip()}" for name, line in sorted(marked() - refused.keys())]

    assert {"refused though it is right": wrongly, "accepted though it is wrong": missed} == {
        "refused though it is right": [],
        "accepted though it is wrong": [],
    }
