"""Redis as a process of our own: what a test can do to it, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mqkit.testing.brokers import BrokerAbsent, BrokerFailed, Certificates, RedisProcess, RedisUser
from tests.brokers.processes import wait_until, wait_until_gone
from tests.newer_brokers import redis_8

pytestmark = pytest.mark.slow

NO_RETRY = redis.retry.Retry(redis.backoff.NoBackoff(), 0)


@pytest.fixture
def broker() -> Iterator[RedisProcess]:
    with RedisProcess(appendonly=True) as broker:
        yield broker


def client(url: str, **options: object) -> redis.Redis:
    return redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0, retry=NO_RETRY, **options)


def test_data_and_port_survive_a_kill(broker: RedisProcess) -> None:
    url = broker.url
    with client(url) as before:
        before.set("a", "1")

    broker.kill()
    broker.start()

    assert broker.url == url
    with client(url) as after:
        assert after.get("a") == b"1"


def test_a_restart_is_a_new_process(broker: RedisProcess) -> None:
    first = broker.pid

    broker.restart()

    assert broker.pid != first
    with client(broker.url) as after:
        assert after.ping()


def test_a_killed_broker_refuses_connections(broker: RedisProcess) -> None:
    broker.kill()

    assert not broker.running
    with client(broker.url) as one, pytest.raises(redis.ConnectionError):
        one.ping()


def test_a_frozen_broker_accepts_and_does_not_answer_until_it_thaws(broker: RedisProcess) -> None:
    broker.freeze()
    with redis.Redis.from_url(broker.url, socket_timeout=0.2, retry=NO_RETRY) as one, pytest.raises(redis.TimeoutError):
        one.ping()

    broker.thaw()

    with client(broker.url) as one:
        assert one.ping()


def test_a_frozen_broker_can_be_stopped(broker: RedisProcess) -> None:
    broker.freeze()

    broker.stop()

    assert not broker.running


def test_accounts_have_the_rights_they_were_given() -> None:
    with RedisProcess(password="all", users={"app": RedisUser(password="p@ss", rules="~app:* +get +set")}) as broker:
        with client(broker.url) as everything, client(broker.url_of("app")) as app:
            everything.set("other", "1")
            app.set("app:a", "1")
            with pytest.raises(redis.exceptions.NoPermissionError):
                app.get("other")
        with client(f"redis://127.0.0.1:{broker.port}/0") as nobody, pytest.raises(redis.AuthenticationError):
            nobody.ping()


def test_limits_and_further_directives_are_in_force() -> None:
    with RedisProcess(maxmemory="32mb", config={"maxmemory-policy": "noeviction", "hz": "50"}) as broker:
        with client(broker.url) as one:
            found = one.config_get("maxmemory", "maxmemory-policy", "hz")

    assert found == {"maxmemory": "33554432", "maxmemory-policy": "noeviction", "hz": "50"}


def test_tls_convinces_those_who_trust_its_authority_only(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path)
    with RedisProcess(tls=certificates) as broker:
        with client(broker.tls_url, ssl_ca_certs=str(certificates.authority)) as one:
            assert one.ping()
        with client(broker.tls_url, ssl_ca_certs=str(certificates.stranger)) as one:
            with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
                one.ping()


def test_a_required_client_certificate_is_asked_for(tmp_path: Path) -> None:
    certificates = Certificates.make(tmp_path)
    with RedisProcess(tls=certificates, client_certificates="required") as broker:
        shown = {"ssl_certfile": str(certificates.client), "ssl_keyfile": str(certificates.client_key)}
        with client(broker.tls_url, ssl_ca_certs=str(certificates.authority), **shown) as one:
            assert one.ping()
        with client(broker.tls_url, ssl_ca_certs=str(certificates.authority)) as one:
            with pytest.raises((redis.ConnectionError, ssl.SSLError)):
                one.ping()


def test_an_exit_at_start_is_an_error_with_the_log() -> None:
    broker = RedisProcess(config={"maxmemory": "plenty"})
    try:
        with pytest.raises(BrokerFailed, match=r"redis ended with status 1 .*(?s:.)*maxmemory plenty"):
            broker.start()
    finally:
        broker.close()


def test_a_broker_that_is_not_installed_is_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BrokerAbsent, match="redis-server is not installed"):
        RedisProcess()


def test_a_program_that_is_named_is_the_one_that_runs_and_is_killed() -> None:
    with RedisProcess(program=redis_8(), appendonly=True) as broker:
        with client(broker.url) as before:
            before.set("a", "1")
            version = before.info("server")["redis_version"]
        group = broker.pid
        broker.kill()
        wait_until_gone(group)
        broker.start()
        with client(broker.url) as after:
            kept = after.get("a")

    assert (version.split(".")[0], kept) == ("8", b"1")


def test_a_program_may_be_named_from_where_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(redis_8().parents[1])
    with RedisProcess(program=Path("bin/redis-server")) as broker, client(broker.url) as native:
        assert native.info("server")["redis_version"].startswith("8.")


def test_a_program_that_is_named_and_not_there_is_absent(tmp_path: Path) -> None:
    with pytest.raises(BrokerAbsent, match=f"there is no program {tmp_path}/redis-server"):
        RedisProcess(program=tmp_path / "redis-server")


def test_nothing_is_left_after_close(broker: RedisProcess) -> None:
    group = broker.pid

    broker.close()
    broker.close()

    assert not broker.folder.exists()
    wait_until_gone(group)


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_nothing_is_left_when_the_run_dies(death: signal.Signals) -> None:
    program = """
import threading
from mqkit.testing.brokers import RedisProcess
broker = RedisProcess()
starter = threading.Thread(target=broker.start)  # which ends before the broker does
starter.start(); starter.join()
print(broker.pid, broker.folder, flush=True)
threading.Event().wait(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        group, folder = run.stdout.readline().split()
        os.killpg(int(group), 0)

        run.send_signal(death)

    wait_until(lambda: not Path(folder).exists())
    wait_until_gone(int(group))
