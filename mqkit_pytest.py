"""
The pytest plugin: fixtures `mqkit_url`, `mqkit_bus`, `mqkit_proxy` and `mqkit_broker`, the marker `mqkit_needs`, and
results of the conformance suite.

Loaded by every pytest that runs where mqkit is installed, so it imports nothing of mqkit before a test asks for it; and
so it stands beside the package, which it would import by being a part of it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mqkit.backends.base import Capabilities
    from mqkit.bus import Bus
    from mqkit.testing.brokers import Broker, BrokerPool, RemotePool
    from mqkit.testing.chaos import FaultProxy

pytest.register_assert_rewrite("mqkit.testing.conformance")  # a case that fails shows what was there

SERVERLESS = ("memory", "sqlite")
BROKERS = ("rabbitmq", "redis", "kafka", "sqs")  # the names in mqkit.testing.brokers.KINDS, which is not imported here
BACKENDS = (*SERVERLESS, *BROKERS)
PROVIDERS = ("auto", "env", "container", "native")
PROVIDER_VARIABLE = "MQKIT_TEST_PROVIDER"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mqkit")
    group.addoption(
        "--mqkit-backends",
        default="memory",
        metavar="NAMES",
        help=f"backends for mqkit_url and mqkit_bus, separated by commas, of {', '.join(BACKENDS)} (default: memory)",
    )
    group.addoption(
        "--mqkit-provider",
        choices=PROVIDERS,
        help="where brokers come from: MQKIT_TEST_RABBITMQ_URL and the like (env), a container, a process of an installed "
        f"program (native), or the first of these that is there (auto; default: ${PROVIDER_VARIABLE}, or auto)",
    )
    group.addoption(
        "--mqkit-require",
        action="store_true",
        help="a broker that is not there fails its tests instead of skipping them; so it is wherever CI is set",
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
    _provider(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if OWNED in config.stash:
        config.stash[OWNED].close()


def chosen(config: pytest.Config) -> list[str]:
    """The backends that were asked for."""
    names = [name.strip() for name in str(config.getoption("--mqkit-backends")).split(",")]
    for name in names:
        if name not in BACKENDS:
            raise pytest.UsageError(f"--mqkit-backends: {name!r} is none of {', '.join(BACKENDS)}")
    return names


def _provider(config: pytest.Config) -> str:
    name = str(config.getoption("--mqkit-provider") or os.environ.get(PROVIDER_VARIABLE) or "auto")
    if name not in PROVIDERS:
        raise pytest.UsageError(f"{PROVIDER_VARIABLE}: {name!r} is none of {', '.join(PROVIDERS)}")
    return name


# -- brokers, shared by all tests of a run -----------------------------------------------------------------------------


OWNED = pytest.StashKey["BrokerPool"]()  # of the config of the process that starts brokers
USED = pytest.StashKey["Broker"]()  # of an item, for the report of its failure


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """The controller of xdist tells a worker where to ask for brokers; none is started yet."""
    if set(chosen(node.config)) & set(BROKERS):
        (host, port), key = _owned(node.config).serve()
        node.workerinput["mqkit_broker_pool"] = (host, port, key.hex())


def _owned(config: pytest.Config) -> BrokerPool:
    if OWNED not in config.stash:
        from mqkit.testing.brokers import BrokerPool

        config.stash[OWNED] = BrokerPool(_provider(config))
    return config.stash[OWNED]


def _pool(config: pytest.Config) -> BrokerPool | RemotePool:
    """Of this process, or of the controller where this is a worker of xdist."""
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)  # of xdist
    if workerinput is None:
        return _owned(config)
    from mqkit.testing.brokers import RemotePool

    host, port, key = workerinput["mqkit_broker_pool"]
    return RemotePool((host, port), bytes.fromhex(key))


def _get(kind: str, config: pytest.Config) -> Broker:
    """A broker, or the end of the test: skipped or failed where there is none, failed where it does not start."""
    from mqkit.testing.brokers import BrokerAbsent, BrokerFailed

    try:
        return _pool(config).get(kind)
    except BrokerAbsent as exc:
        absent = str(exc)
    except BrokerFailed as exc:
        pytest.fail(str(exc), pytrace=False)
    if config.getoption("--mqkit-require") or os.environ.get("CI", "").lower() not in {"", "0", "false"}:
        pytest.fail(absent, pytrace=False)
    pytest.skip(absent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where each broker came from, and what would enable one that is not there."""
    if OWNED not in config.stash:
        return
    for kind, outcome in config.stash[OWNED].outcomes().items():
        if isinstance(outcome, Exception):
            terminalreporter.write_line(f"mqkit: {type(outcome).__name__}: {str(outcome).splitlines()[0]}")
        else:
            terminalreporter.write_line(f"mqkit: {kind} from {outcome.provider}, ready in {outcome.seconds:.1f} s")


# -- fixtures ----------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mqkit_backend" in metafunc.fixturenames:
        metafunc.parametrize("mqkit_backend", chosen(metafunc.config), indirect=True)


@pytest.fixture
def mqkit_backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend; once for each of `--mqkit-backends`."""
    return str(request.param)


@pytest.fixture
def mqkit_broker(mqkit_backend: str, request: pytest.FixtureRequest) -> Broker:
    """The broker that serves this test and others: `kind`, `url`, `management_url`. Skips where there is none."""
    if mqkit_backend in SERVERLESS:
        pytest.skip(f"{mqkit_backend} has no broker")
    broker = _get(mqkit_backend, request.config)
    request.node.stash[USED] = broker
    return broker


@pytest.fixture
def _mqkit_place(mqkit_backend: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """The direct URL of what belongs to this test alone."""
    name = f"mqkit{uuid.uuid4().hex}"
    if mqkit_backend == "memory":
        yield f"memory://{name}"
    elif mqkit_backend == "sqlite":
        yield f"sqlite:///{request.getfixturevalue('tmp_path') / 'mqkit.db'}"
    else:
        broker: Broker = request.getfixturevalue("mqkit_broker")
        from mqkit.testing.brokers import KINDS

        with KINDS[mqkit_backend].place(broker, name) as url:
            yield url


@pytest.fixture
def mqkit_proxy(mqkit_backend: str, _mqkit_place: str) -> Iterator[FaultProxy]:
    """A proxy in front of the broker, through which `mqkit_url` leads. Skips where there is no connection to break."""
    if mqkit_backend in SERVERLESS:
        pytest.skip(f"{mqkit_backend} has no connection that a proxy could break")
    if mqkit_backend == "kafka":
        pytest.skip("kafka tells its clients where to find it, past any proxy: use KafkaProcess(proxied=True) yourself")
    from urllib.parse import urlsplit

    from mqkit.testing.chaos import FaultProxy

    broker = urlsplit(_mqkit_place)
    with FaultProxy(broker.hostname or "localhost", broker.port or 0) as proxy:
        yield proxy


@pytest.fixture
def mqkit_url(mqkit_backend: str, _mqkit_place: str, request: pytest.FixtureRequest) -> str:
    """The URL of a backend, or of a part of it, that nothing but this test uses; once for each of `--mqkit-backends`."""
    url = _mqkit_place
    needs = [need for marker in request.node.iter_markers("mqkit_needs") for need in marker.args]
    if needs and (missing := _lacking(_capabilities(url), needs)):
        pytest.skip(f"needs {missing}, which {mqkit_backend} does not have")
    if "mqkit_proxy" in request.fixturenames:
        proxy: FaultProxy = request.getfixturevalue("mqkit_proxy")
        return proxy.through(url)
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


# -- reports -----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    broker = item.stash.get(USED, None)
    if broker is not None and report.failed and (log := _log_tail(broker, item.config)):
        report.sections.append((f"log of {broker.kind}, from {broker.provider}", log))
    marker = item.get_closest_marker("mqkit_case")
    harness = getattr(item, "funcargs", {}).get("harness")
    if marker is not None and harness is not None:
        name: str = getattr(item, "originalname", item.name)
        capabilities = dataclasses.asdict(harness.capabilities)
        vars(report)["mqkit_case"] = {
            "case": marker.args[0],
            "title": name.removeprefix("test_").replace("_", " "),
            "backend": harness.system,
        }
        # Plain values only: under xdist they travel to the main process, and JSON has no infinity.
        vars(report)["mqkit_capabilities"] = {
            field: "any" if value == math.inf else value for field, value in capabilities.items()
        }
    return report


def _log_tail(broker: Broker, config: pytest.Config) -> str:
    try:
        return _pool(config).log_tail(broker.kind)
    except Exception as exc:  # noqa: BLE001  the failure of a test must not be hidden by that of its report
        return f"(its log cannot be read: {type(exc).__name__}: {exc})"


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
