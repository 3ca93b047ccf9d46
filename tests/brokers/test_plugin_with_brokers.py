"""The pytest plugin over brokers: what a test suite sees, in one process and under xdist."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
import redis

import mqkit_pytest as plugin
from mqkit.testing.brokers import KINDS, RabbitProcess, RedisProcess
from tests.brokers.processes import running, wait_until, wait_until_gone

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow
ALONE_AND_TOGETHER = pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one process", "two processes"])

# What a suite does with each broker, by its driver alone.
HELPERS = """
import pika, redis
from urllib.parse import urlsplit, parse_qs

def greet(url):
    if url.startswith("redis:"):
        with client(url) as one:
            assert one.ping()
    else:
        connect(url).close()

def client(url):
    parts = urlsplit(url)
    none = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
    return redis.Redis.from_url(parts._replace(query="").geturl(), socket_timeout=5.0, retry=none)

def prefix(url):
    return parse_qs(urlsplit(url).query)["prefix"][0]

def connect(url):
    parameters = pika.URLParameters(url.partition("?")[0])
    parameters.socket_timeout = parameters.stack_timeout = parameters.blocked_connection_timeout = 10.0
    return pika.BlockingConnection(parameters)
"""


@pytest.fixture(autouse=True)
def _suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(helpers=HELPERS)
    pytester.syspathinsert()
    monkeypatch.delenv("CI", raising=False)
    for name in (plugin.PROVIDER_VARIABLE, *(kind.url_variable for kind in KINDS.values())):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def rabbit() -> Iterator[RabbitProcess]:
    with RabbitProcess() as broker:
        yield broker


@pytest.fixture
def rabbit_at_hand(rabbit: RabbitProcess, monkeypatch: pytest.MonkeyPatch) -> RabbitProcess:
    """For the suite, as CI would hand it a service."""
    assert rabbit.management_url is not None
    monkeypatch.setenv("MQKIT_TEST_RABBITMQ_URL", rabbit.url)
    monkeypatch.setenv("MQKIT_TEST_RABBITMQ_MANAGEMENT_URL", rabbit.management_url)
    return rabbit


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    # Without hypothesis, whose import takes longer than these runs.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest", *options)


def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


# -- shared and ended --------------------------------------------------------------------------------------------------


@ALONE_AND_TOGETHER
def test_one_broker_of_each_kind_serves_all_tests_and_ends_with_them(
    pytester: pytest.Pytester, processes: list[str]
) -> None:
    pytester.makepyfile("""
        import os, pytest
        from pathlib import Path
        from helpers import greet

        @pytest.mark.parametrize("turn", range(6))
        def test_it_serves(mqkit_url, mqkit_broker, turn):
            greet(mqkit_url)
            with Path("urls").open("a") as file:
                file.write(f"{mqkit_broker.kind} {mqkit_broker.url} {os.getpid()}\\n")
    """)

    result = run(pytester, "--mqkit-backends=rabbitmq,redis", "--mqkit-provider=native", *processes)

    result.assert_outcomes(passed=12)
    result.stdout.fnmatch_lines_random(
        ["mqkit: rabbitmq from process, ready in *", "mqkit: redis from process, ready*"]
    )
    lines = [line.split() for line in Path("urls").read_text().splitlines()]
    assert len({url for _, url, _ in lines}) == 2
    assert len({pid for *_, pid in lines}) == (2 if processes else 1)
    for url in {url for kind, url, _ in lines if kind == "redis"}:
        with redis.Redis.from_url(url) as client, pytest.raises(redis.ConnectionError):
            client.ping()


@ALONE_AND_TOGETHER
def test_a_broker_ends_with_a_run_that_is_killed(pytester: pytest.Pytester, processes: list[str]) -> None:
    pytester.makepyfile("""
        import threading
        from pathlib import Path
        from helpers import client

        def test_it_hangs(mqkit_broker):
            with client(mqkit_broker.url) as one:
                group = one.info("server")["process_id"]
            Path("started.part").write_text(str(group))
            Path("started.part").rename("started")
            threading.Event().wait(60)
    """)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--mqkit-backends=redis", *processes]
    with subprocess.Popen([*command, "--mqkit-provider=native"], stdout=subprocess.DEVNULL) as suite:
        wait_until(Path("started").exists, within=30.0)
        group = int(Path("started").read_text())
        assert running(group)

        suite.send_signal(signal.SIGKILL)

    wait_until_gone(group)


# -- a place for each test ---------------------------------------------------------------------------------------------


def test_a_test_on_redis_has_a_prefix_of_its_own_and_leaves_no_key(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("""
        import pytest
        from helpers import client, prefix

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it_is_alone(mqkit_url, turn):
            with client(mqkit_url) as one:
                assert not one.keys(prefix(mqkit_url) + "*")
                one.set(prefix(mqkit_url) + "a", turn)
                assert prefix(mqkit_url).startswith("{") and prefix(mqkit_url).endswith("}:")
    """)
    with RedisProcess() as broker:
        monkeypatch.setenv("MQKIT_TEST_REDIS_URL", broker.url)

        result = run(pytester, "--mqkit-backends=redis", "--mqkit-provider=env")

        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(["mqkit: redis from MQKIT_TEST_REDIS_URL, ready in *"])
        with redis.Redis.from_url(broker.url) as client:
            assert client.keys("*") == []


def test_a_test_on_rabbitmq_has_a_vhost_of_its_own_that_ends_with_it(
    pytester: pytest.Pytester, rabbit_at_hand: RabbitProcess
) -> None:
    pytester.makepyfile("""
        import pytest
        from helpers import connect

        @pytest.mark.parametrize("turn", [1, 2])
        def test_it_is_alone(mqkit_url, turn):
            with connect(mqkit_url) as connection, connection.channel() as channel:
                channel.queue_declare("same")
                assert channel.basic_get("same")[0] is None
                channel.basic_publish("", "same", b"1")
    """)

    run(pytester, "--mqkit-backends=rabbitmq", "--mqkit-provider=env").assert_outcomes(passed=2)

    assert rabbit_at_hand.ctl("list_vhosts", "--no-table-headers").split() == ["/"]


def test_rabbitmq_without_its_management_api_is_an_error_that_says_so(
    pytester: pytest.Pytester, rabbit_at_hand: RabbitProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MQKIT_TEST_RABBITMQ_MANAGEMENT_URL", "http://guest:hunter2@127.0.0.1:1")
    pytester.makepyfile("def test_it(mqkit_url): pass")

    result = run(pytester, "--mqkit-backends=rabbitmq")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*management API of rabbitmq at 127.0.0.1:1 does not answer*rabbitmq_management*"])
    assert "hunter2" not in result.stdout.str()


# -- there is none -----------------------------------------------------------------------------------------------------


def test_an_absent_broker_skips_with_every_reason(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nothing_installed(monkeypatch, tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    pytester.makepyfile("def test_it(mqkit_url): pass")

    result = run(pytester, "--mqkit-backends=redis", "-rs")

    result.assert_outcomes(skipped=1)
    reasons = (
        "*MQKIT_TEST_REDIS_URL is not set; no container: docker does not answer*; no process: redis-server is not*"
    )
    result.stdout.fnmatch_lines([f"mqkit: BrokerAbsent: redis: {reasons}", f"SKIPPED*redis: {reasons}"])


@pytest.mark.parametrize(
    ("ci", "options"), [("", ["--mqkit-require"]), ("true", ["-n", "2"])], ids=["option", "CI, two processes"]
)
def test_an_absent_broker_fails_where_it_is_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: str, options: list[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    pytester.makepyfile("def test_it(mqkit_url): pass")

    result = run(pytester, "--mqkit-backends=memory,redis", "--mqkit-provider=env", *options)

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*redis: MQKIT_TEST_REDIS_URL is not set*"])


def test_a_broker_that_is_there_and_does_not_start_fails_with_its_log(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho out of luck\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    pytester.makepyfile("def test_it(mqkit_url): pass")

    result = run(pytester, "--mqkit-backends=redis", "--mqkit-provider=native")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*redis ended with status 3 while it started*", "*out of luck*"])


def test_the_environment_can_force_a_provider(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile("def test_it(mqkit_url): pass")

    monkeypatch.setenv("MQKIT_TEST_PROVIDER", "env")
    forced = run(pytester, "--mqkit-backends=redis", "-rs")
    overruled = run(pytester, "--mqkit-backends=redis", "--mqkit-provider=native")
    monkeypatch.setenv("MQKIT_TEST_PROVIDER", "cloud")
    refused = run(pytester)

    forced.assert_outcomes(skipped=1)
    overruled.assert_outcomes(passed=1)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*MQKIT_TEST_PROVIDER: 'cloud' is none of auto, env, container, native*"])


# -- faults and failures -----------------------------------------------------------------------------------------------


def test_the_url_of_a_test_leads_through_its_proxy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest, redis
        from helpers import client

        def test_a_lost_connection_is_seen(mqkit_url, mqkit_proxy, mqkit_broker):
            with client(mqkit_url) as one, client(mqkit_broker.url) as direct:
                one.ping()
                assert mqkit_proxy.open_connections == 1
                mqkit_proxy.refuse()
                mqkit_proxy.reset()
                with pytest.raises(redis.ConnectionError):
                    one.ping()
                assert direct.ping()
                mqkit_proxy.accept()
                assert one.ping()
    """)

    result = run(pytester, "--mqkit-backends=memory,redis", "--mqkit-provider=native", "-rs")

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*memory has no connection that a proxy could break*"])


@ALONE_AND_TOGETHER
def test_a_failure_is_reported_with_the_log_of_the_broker(pytester: pytest.Pytester, processes: list[str]) -> None:
    pytester.makepyfile("def test_it(mqkit_url): assert mqkit_url == ''")

    result = run(pytester, "--mqkit-backends=memory,redis", "--mqkit-provider=native", *processes)

    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*log of redis, from process*", "*Ready to accept connections*"])
    assert result.stdout.str().count("Ready to accept connections") == 1


def test_a_proxy_breaks_a_connection_to_rabbitmq(pytester: pytest.Pytester, rabbit_at_hand: RabbitProcess) -> None:
    pytester.makepyfile("""
        import pika.exceptions, pytest
        from helpers import connect

        def test_it(mqkit_url, mqkit_proxy):
            connection = connect(mqkit_url)
            channel = connection.channel()
            mqkit_proxy.reset()
            with pytest.raises(pika.exceptions.AMQPConnectionError):
                channel.queue_declare("numbers")
            connect(mqkit_url).close()
    """)

    run(pytester, "--mqkit-backends=rabbitmq", "--mqkit-provider=env").assert_outcomes(passed=1)
    with pika.BlockingConnection(pika.URLParameters(rabbit_at_hand.url + "%2F")) as connection:
        assert connection.is_open


def test_the_plugin_knows_the_kinds_without_importing_them() -> None:
    assert sorted(plugin.BROKERS) == sorted(KINDS)
