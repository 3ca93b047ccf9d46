"""TLS, rights, sentinels, clusters: where a server is and what it lets us do."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import redis

from mqkit import Broadcast, Bus, Queue, Retry, Topic
from mqkit.errors import ConfigError, Denied, MqkitError, Unavailable
from mqkit.native import RedisTopic
from mqkit.testing import run_until_idle
from mqkit.testing.brokers import Certificates, RedisProcess, RedisUser
from mqkit.testing.brokers.process import HOST, ask, free_ports
from tests.integration.redis.backends import backend_of
from tests.unit.waiting import until

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[3] / "docs" / "backends" / "redis.md"

words = Queue("words", str)
steps = Queue("steps", str, key=lambda step: step[0])
orders = Topic("orders", str, native=RedisTopic(retain=60))
ticks = Broadcast("ticks", str)


def exercise(url: str) -> None:
    """One of everything: order, retries, dead letters, delays, replay, broadcasts, description, deletion."""
    bus, seen, live = Bus(url), [], []
    tries: list[int] = []
    bus.on(steps)(seen.append)
    bus.on(orders, group="audit", start="earliest")(seen.append)

    @bus.on(words, retry=Retry(attempts=2))
    def fail(word: str) -> None:
        tries.append(1)
        raise ValueError(word)

    with bus:
        bus.declare(orders)
        bus.publish(orders, "an order")
        bus.publish(words, "broken", delay=0.05)
        bus.publish(steps, "a step")
        run_until_idle(bus, timeout=30)
        [letter] = bus.dead_letters(words).list()
        assert letter.reason.startswith("ValueError")
        assert bus.dead_letters(words).replay() == 1
        run_until_idle(bus, timeout=30)
        assert bus.dead_letters(words).purge() == 1
    listener = Bus(url)
    listener.on(ticks)(live.append)
    with listener, listener.worker():
        listener.publish(ticks, "a tick")
        until(lambda: live == ["a tick"])
        admin = backend_of(url).admin()
        for destination in (words, steps, orders):
            admin.delete(destination.address)
        admin.close()
    assert sorted(seen) == ["a step", "an order"]
    assert len(tries) == 4


def test_the_documented_rights_are_enough_for_everything() -> None:
    [rules] = re.findall(r"```text\s+(user app .*?)```", PAGE.read_text(), re.S)
    rules = " ".join(rules.split()).partition(">secret ")[2]
    with RedisProcess(users={"app": RedisUser(password="pw", rules=rules)}) as server:
        exercise(server.url_of("app"))
        elsewhere = Bus(f"{server.url_of('app')}?{urlencode({'prefix': '{other}:'})}")
        with closing(elsewhere), pytest.raises(Denied):
            elsewhere.open(timeout=10)


def test_tls_with_a_trusted_authority(certificates: Certificates) -> None:
    with RedisProcess(tls=certificates) as server:
        exercise(f"{server.tls_url}?{urlencode({'ca': certificates.authority})}")


def test_tls_with_an_authority_that_is_not_trusted(certificates: Certificates) -> None:
    with RedisProcess(tls=certificates) as server:
        bus = Bus(f"{server.tls_url}?{urlencode({'ca': certificates.stranger})}")
        with closing(bus), pytest.raises(Denied, match="CERTIFICATE_VERIFY_FAILED"):
            bus.open(timeout=10)


def test_a_client_certificate_that_is_asked_for(certificates: Certificates) -> None:
    with RedisProcess(tls=certificates, client_certificates="required") as server:
        trusting = {"ca": certificates.authority}
        with pytest.raises((Denied, Unavailable)):
            backend_of(f"{server.tls_url}?{urlencode(trusting)}").publisher()
        shown = trusting | {"cert": certificates.client, "key": certificates.client_key}
        with Bus(f"{server.tls_url}?{urlencode(shown)}") as bus:
            bus.publish(words, "hello")


def test_tls_to_a_plain_port_says_so_in_bounded_time(certificates: Certificates) -> None:
    with RedisProcess() as server:
        url = server.url.replace("redis://", "rediss://")
        with pytest.raises(Unavailable):
            backend_of(f"{url}?{urlencode({'ca': certificates.authority, 'timeout': 1})}").publisher()


def test_a_database_by_number_and_one_that_is_not_there() -> None:
    with RedisProcess() as server:
        stem = server.url.removesuffix("/0")
        with Bus(f"{stem}/3") as bus:
            bus.publish(words, "in three")
        with redis.Redis(port=server.port, db=3) as native:
            assert native.xlen("{mqkit}:q:words") == 1
        with pytest.raises(ConfigError, match="database"):
            backend_of(f"{stem}/99").publisher()


@contextmanager
def sentinel(primary: RedisProcess, folder: Path, password: str = "") -> Iterator[int]:
    """A sentinel that watches `primary` as `mymaster`; its port."""
    [port] = free_ports(1)
    config = folder / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor mymaster 127.0.0.1 {primary.port} 1\n"
        + (f"requirepass {password}\n" if password else "")
        + "sentinel down-after-milliseconds mymaster 3000\nsentinel failover-timeout mymaster 6000\n"
    )
    process = subprocess.Popen(["redis-server", str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.kill()
        process.wait(10)


def test_sentinels_name_the_primary_also_after_a_fail_over(tmp_path: Path) -> None:
    with (
        RedisProcess(appendonly=True) as first,
        RedisProcess(appendonly=True, config={"replicaof": f"127.0.0.1 {first.port}"}) as second,
        redis.Redis(port=first.port) as native,
    ):
        until(lambda: native.info("replication")["connected_slaves"] == 1)
        with sentinel(first, tmp_path) as port, redis.Redis(port=port) as watch:
            until(lambda: sentinel_knows(watch))
            seen: list[str] = []
            bus = Bus(f"redis+sentinel://127.0.0.1:{port}?service=mymaster&timeout=2")
            bus.on(words)(seen.append)
            with bus, bus.worker():
                bus.publish(words, "before")
                until(lambda: seen == ["before"])
                first.kill()
                until(lambda: works(bus, "after"), within=60)
                until(lambda: "after" in seen)
            assert second.running


def test_sentinels_have_a_login_of_their_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RedisProcess() as server, sentinel(server, tmp_path, password="hush") as port:
        until(lambda: ask(HOST, port, b"PING\r\n").startswith(b"-NOAUTH"))
        url = f"redis+sentinel://127.0.0.1:{port}?service=mymaster"
        with Bus(f"{url}&sentinel_password=hush") as bus:
            bus.publish(words, "hello")
        for wrong in (url, f"{url}&sentinel_password=h0sh", f"{url}&sentinel_username=me&sentinel_password=h0sh"):
            with pytest.raises(Denied, match="sentinel_password") as refused:
                backend_of(wrong).publisher()
            assert "h0sh" not in repr(refused.value) + caplog.text


def sentinel_knows(watch: redis.Redis) -> bool:
    """Does it see the primary, with a replica to promote?"""
    try:
        return bool(watch.execute_command("SENTINEL MASTER", "mymaster")["num-slaves"] == 1)
    except redis.RedisError:
        return False


def works(bus: Bus, word: str) -> bool:
    try:
        bus.publish(words, word, timeout=5.0)
    except MqkitError as exc:
        return not exc.retryable
    return True


def test_a_cluster_is_followed_to_the_node_that_has_our_keys() -> None:
    config = {"cluster-enabled": "yes"}
    ports = free_ports(2)  # for talk among nodes; by default 10,000 above the other port, which may be too high
    with (
        RedisProcess(config=config | {"cluster-port": str(ports[0])}) as one,
        RedisProcess(config=config | {"cluster-port": str(ports[1])}) as two,
    ):
        with redis.Redis(port=one.port) as first, redis.Redis(port=two.port) as second:
            # The slot of {mqkit} is among those of one of them; both URLs must lead there.
            first.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
            second.execute_command("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
            first.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port, ports[1])
            until(lambda: all(b"cluster_state:ok" in raw_info(node) for node in (one, two)), within=60)
        for server in (one, two):
            exercise(server.url)


def raw_info(server: RedisProcess) -> bytes:
    return ask(HOST, server.port, b"CLUSTER INFO\r\n")
