"""
The pytest plugin: fixtures `mqkit_url` and `mqkit_bus`, the marker `mqkit_needs`, and results of the conformance suite.

Loaded by every pytest that runs where mqkit is installed, so it imports nothing of mqkit before a test asks for it; and
so it stands beside the package, which it would import by being a part of it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mqkit.backends.base import Capabilities
    from mqkit.bus import Bus

BACKENDS = ("memory", "sqlite")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mqkit")
    group.addoption(
        "--mqkit-backends",
        default="memory",
        metavar="NAMES",
        help=f"backends for mqkit_url and mqkit_bus, separated by commas, of {', '.join(BACKENDS)} (default: memory)",
    )
    group.addoption(
        "--mqkit-results",
        metavar="FILE",
        type=Path,
        help="write what became of each conformance case to this file, as JSON lines",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mqkit_needs(*capabilities): skip where the backend of mqkit_url lacks one")
    config.addinivalue_line("markers", "mqkit_case(id): a case of the conformance suite")
    config.addinivalue_line("markers", "slow: a case that takes many seconds or several processes")
    results: Path | None = config.getoption("--mqkit-results")
    if results is not None and not hasattr(config, "workerinput"):  # under xdist reports come to the main process
        try:
            config.pluginmanager.register(Results(results))
        except OSError as exc:
            raise pytest.UsageError(f"--mqkit-results: {results} cannot be written: {exc.strerror}") from exc
    chosen(config)


def chosen(config: pytest.Config) -> list[str]:
    """The backends that were asked for."""
    names = [name.strip() for name in str(config.getoption("--mqkit-backends")).split(",")]
    for name in names:
        if name not in BACKENDS:
            raise pytest.UsageError(f"--mqkit-backends: {name!r} is none of {', '.join(BACKENDS)}")
    return names


# -- fixtures ----------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mqkit_url" in metafunc.fixturenames:
        metafunc.parametrize("mqkit_url", chosen(metafunc.config), indirect=True)


@pytest.fixture
def mqkit_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a backend that nothing but this test uses; once for each of `--mqkit-backends`."""
    urls = {"memory": f"memory://{uuid.uuid4().hex}", "sqlite": f"sqlite:///{tmp_path / 'mqkit.db'}"}
    url = urls[request.param]
    needs = [need for marker in request.node.iter_markers("mqkit_needs") for need in marker.args]
    if needs and (missing := _lacking(_capabilities(url), needs)):
        pytest.skip(f"needs {missing}, which {request.param} does not have")
    return url


@pytest.fixture
def mqkit_bus(mqkit_url: str) -> Iterator[Bus]:
    """A bus on `mqkit_url`, closed when the test ends."""
    from mqkit.bus import Bus

    bus = Bus(mqkit_url)
    yield bus
    bus.close()


def _capabilities(url: str) -> Capabilities:
    from mqkit._clock import SystemClock
    from mqkit._registry import backend_for
    from mqkit._url import Url

    return backend_for(Url.parse(url), SystemClock()).capabilities


def _lacking(capabilities: Capabilities, needs: list[str]) -> str | None:
    for need in needs:
        if not hasattr(capabilities, need):
            raise pytest.UsageError(f"mqkit_needs({need!r}): there is no such capability")
        if not getattr(capabilities, need):
            return need
    return None


# -- results of conformance cases --------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marker = item.get_closest_marker("mqkit_case")
    harness = getattr(item, "funcargs", {}).get("harness")
    if marker is not None and harness is not None:
        name: str = getattr(item, "originalname", item.name)
        capabilities = dataclasses.asdict(harness.capabilities)
        vars(report)["mqkit_case"] = {
            "case": marker.args[0],
            "title": name.removeprefix("test_").replace("_", " "),
            "backend": harness.capabilities.name,
        }
        # Plain values only: under xdist they travel to the main process, and JSON has no infinity.
        vars(report)["mqkit_capabilities"] = {
            field: "any" if value == math.inf else value for field, value in capabilities.items()
        }
    return report


class Results:
    """
    Writes a line for each case: its id, title, backend, outcome, and the reason of a skip or failure. Before the first
    one of a backend stands a line with its capabilities.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._described: set[str] = set()
        path.write_text("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found: dict[str, str] | None = getattr(report, "mqkit_case", None)
        if found is None or (report.when != "call" and report.passed):
            return
        if found["backend"] not in self._described:
            self._described.add(found["backend"])
            self._write({"backend": found["backend"], "capabilities": vars(report)["mqkit_capabilities"]})
        self._write({**found, "outcome": report.outcome, "reason": _reason(report)})

    def _write(self, line: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _reason(report: pytest.TestReport) -> str:
    """Of a skip, as it was given; of a failure, its first line."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    if report.failed:
        return str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr)).split("\n")[0]
    return ""
