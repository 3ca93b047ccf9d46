"""Where a broker comes from, and how processes share it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client

import pytest

from mqkit.errors import ConfigError
from mqkit.testing.brokers import (
    KINDS,
    BrokerAbsent,
    BrokerFailed,
    BrokerPool,
    RedisProcess,
    RemotePool,
    provide,
    providers,
)
from mqkit.testing.brokers.process import free_ports
from mqkit.testing.brokers.providers import from_environment

REDIS, RABBITMQ = KINDS["redis"], KINDS["rabbitmq"]


@pytest.fixture
def pool() -> Iterator[BrokerPool]:
    pool = BrokerPool("native")
    yield pool
    pool.close()


@pytest.mark.slow
def test_a_broker_of_the_environment_is_used_as_it_is_and_not_ended() -> None:
    with RedisProcess() as redis:
        running = from_environment(REDIS, {"MQKIT_TEST_REDIS_URL": redis.url})
        running.close()

        assert redis.running
        assert (running.broker.url, running.broker.provider) == (redis.url, "MQKIT_TEST_REDIS_URL")
        assert (running.broker.management_url, running.log_tail()) == (None, "")


def test_the_management_api_is_looked_for_beside_rabbitmq_unless_it_is_named() -> None:
    url = "amqps://me:p%40ss@broker.invalid/"  # over TLS nobody is asked yet
    named = {"MQKIT_TEST_RABBITMQ_URL": url, "MQKIT_TEST_RABBITMQ_MANAGEMENT_URL": "http://api.invalid"}

    beside = from_environment(RABBITMQ, {"MQKIT_TEST_RABBITMQ_URL": url}).broker

    assert beside.management_url == "http://me:p%40ss@broker.invalid:15672"
    assert beside.url == "amqps://me:p%40ss@broker.invalid:5671/"
    assert from_environment(RABBITMQ, named).broker.management_url == "http://api.invalid"
    assert "p%40ss" not in repr(beside)


def test_a_broker_of_the_environment_that_does_not_answer_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "ANSWER", 0.1)
    (port,) = free_ports(1)

    with pytest.raises(
        BrokerFailed, match=rf"redis://me:\*\*\*@127.0.0.1:{port} \(MQKIT_TEST_REDIS_URL\) does not answer"
    ):
        from_environment(REDIS, {"MQKIT_TEST_REDIS_URL": f"redis://me:hunter2@127.0.0.1:{port}"})


def test_a_kind_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'postgres' is no kind of broker, of rabbitmq, redis"):
        provide("postgres")


@pytest.mark.slow
def test_all_who_ask_at_once_get_the_same_broker(pool: BrokerPool) -> None:
    remote = RemotePool(*pool.serve())
    urls: list[str] = []
    askers = [threading.Thread(target=lambda one=one: urls.append(one.get("redis").url)) for one in [pool, remote] * 4]

    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join(30.0)

    assert len(urls) == 8
    assert len(set(urls)) == 1
    assert "Ready to accept connections" in remote.log_tail("redis")


def test_who_has_not_the_key_is_not_answered(pool: BrokerPool) -> None:
    address, _ = pool.serve()

    with pytest.raises(AuthenticationError), Client(address, authkey=b"guess"):
        pass


def test_an_absent_broker_is_looked_for_once_and_absent_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQKIT_TEST_REDIS_URL", raising=False)
    pool = BrokerPool("env")
    remote = RemotePool(*pool.serve())
    try:
        with pytest.raises(BrokerAbsent, match="MQKIT_TEST_REDIS_URL is not set"):
            pool.get("redis")
        monkeypatch.setenv("MQKIT_TEST_REDIS_URL", "rediss://127.0.0.1:1")
        with pytest.raises(BrokerAbsent, match="MQKIT_TEST_REDIS_URL is not set"):
            remote.get("redis")
        assert remote.log_tail("redis") == ""
    finally:
        pool.close()
