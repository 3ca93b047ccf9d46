"""
The examples of README and docs/, executed page by page.

The Python blocks of a page run in order in one module, in an empty folder. A block with a title, of any language, is
written to a file of that name instead, for other blocks to import or run. `print(...)  # text` must print that text.
Lines of console blocks that begin with `$ mqkit` or `$ python` run too, and must print the lines below them, where an
ellipsis stands for anything; `$ mqkit run` runs until nothing is left to do. `<!-- not run: why -->` above a block leaves
it out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MQKIT = str(Path(sys.executable).with_name("mqkit"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOREIGN = {"docs/guides/cli.md"}  # shows commands on a broker that the reader has; tests/unit/cli is its test

_FENCE = re.compile(
    r"^(?P<skip><!-- not run: [^\n]*-->\n\n?)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    language: str
    title: str | None
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found["language"], found["title"], found["text"], text[: found.start("text")].count("\n") + 1)
        for found in _FENCE.finditer(text)
        if not found["skip"]
    ]


def with_examples() -> list[object]:
    found = []
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        if name not in FOREIGN and any(block.language in ("python", "console") for block in blocks_of(page)):
            found.append(pytest.param(page, id=name))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page runs: empty, importable, with no settings of mqkit around."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    variables = dict(os.environ)
    for name in [name for name in variables if name.startswith("MQKIT_")]:
        del os.environ[name]
    before = set(sys.modules)
    yield tmp_path
    os.environ.clear()
    os.environ.update(variables)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", with_examples())
def test_the_examples_of_a_page_run_in_order(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    blocks = blocks_of(page)
    for block in blocks:
        if block.title:
            (folder / block.title).parent.mkdir(exist_ok=True)
            (folder / block.title).write_text(block.text)
            if block.language == "python":
                used = block.title.removesuffix(".py")
                assert any(used in other.text for other in blocks if other is not block), f"nothing runs {block.title}"
        elif block.language == "python":
            run_python(block, page, module)
        elif block.language == "console":
            run_console(block, page)


def run_python(block: Block, page: Path, module: types.ModuleType) -> None:
    # Blank lines in front, so that a traceback names the line of the page.
    source = "\n" * (block.line - 1) + block.text
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, str(page), "exec", dont_inherit=True), module.__dict__)
    expected = re.findall(r"^ *print\(.*\)  # (.+)$", block.text, re.MULTILINE)
    lines = printed.getvalue().splitlines()
    if expected:
        assert lines == expected, f"{page.name}:{block.line}"


def run_console(block: Block, page: Path) -> None:
    for command, shown in commands_of(block.text):
        words = shlex.split(command, comments=True)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value  # until the fixture restores it
            continue
        if words[0] not in ("mqkit", "python"):
            continue
        command_line = [MQKIT if words[0] == "mqkit" else sys.executable, *words[1:]]
        if words[:2] == ["mqkit", "run"]:
            output = run_worker(command_line)
        else:
            done = subprocess.run(command_line, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, f"{page.name}: {command}\n{done.stdout}{done.stderr}"
            output = done.stdout
        assert_shown(shown, output, f"{page.name}: {command}")


def commands_of(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a console block with the lines shown below it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield command, [line for line in shown if line.strip()]


def assert_shown(shown: list[str], output: str, where: str) -> None:
    for line in shown:
        pattern = ".*".join(re.escape(part) for part in re.split(r"…|\.\.\.", line.rstrip()))
        # Anywhere, not as a whole line: threads that print at once may share one.
        assert re.search(pattern, output), f"{where}\nshown: {line}\nprinted:\n{output}"


def run_worker(command: list[str]) -> str:
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 60
        quiet = 0
        while quiet < 3:
            assert time.monotonic() < deadline, "the worker is still busy"
            assert worker.poll() is None, f"the worker ended: {worker.stdout.read() if worker.stdout else ''}"
            quiet = quiet + 1 if is_quiet() else 0
        worker.send_signal(signal.SIGINT)
        output, _ = worker.communicate(timeout=30)
    finally:
        if worker.poll() is None:
            worker.kill()
    assert worker.returncode == 0, output
    return output


def is_quiet() -> bool:
    look = subprocess.run([MQKIT, "stats", "--json"], capture_output=True, text=True, timeout=60, check=False)
    if look.returncode != 0:
        return False
    return not any(one["ready"] + one["inflight"] + one["delayed"] for one in json.loads(look.stdout)["sources"])


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    missing = [
        name
        for page in (ROOT / "docs").rglob("*.md")
        if (name := str(page.relative_to(ROOT / "docs"))) not in navigation
    ]

    assert missing == []


def test_no_python_block_is_overlooked() -> None:
    for page in PAGES:
        text = page.read_text()
        found = sum(block["language"] == "python" for block in _FENCE.finditer(text))

        assert found == len(re.findall(r"^ *(?:```|~~~) *python", text, re.MULTILINE)), page.name
