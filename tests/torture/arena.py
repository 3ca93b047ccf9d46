"""A running system to torture, and what can be done to it besides killing who uses it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from mqkit.testing.brokers import AwsProcess, BrokerProcess, KafkaProcess, RabbitProcess, RedisProcess
from mqkit.testing.chaos import FaultProxy
from tests.aws_emulators import program_of
from tests.torture.crowd import Crowd

Fault = Callable[[Crowd, random.Random], None]


@dataclass
class Arena:
    """
    Attributes:
        url: What the tortured processes connect to; through the fault proxy where there is one.
        quiet_url: Past the proxy, to look on.
        frozen: Seconds a consumer is frozen, long enough for others to take over what it holds.
        faults: Of the system, by name.
        pace: Seconds between two messages of a publisher, of whom there are two.
        slowness: Factor on the time that consumers have to handle what is left.
    """

    backend: str
    url: str
    quiet_url: str
    frozen: float
    faults: Mapping[str, Fault] = field(default_factory=dict)
    pace: float = 0.002
    slowness: float = 1.0

    def all_faults(self) -> dict[str, Fault]:
        return {
            "kill a consumer": lambda crowd, chance: crowd.kill_consumer(chance),
            "kill another consumer": lambda crowd, chance: crowd.kill_consumer(chance),
            "stop a consumer": lambda crowd, chance: crowd.stop_consumer(chance),
            "freeze a consumer": lambda crowd, chance: crowd.freeze_consumer(chance, self.frozen),
            "kill a publisher": lambda crowd, chance: crowd.kill_publisher(chance),
            **self.faults,
        }


def sqlite_arena(folder: Path) -> Arena:
    path = folder / "torture.db"
    url = f"sqlite:///{path}?lease=1.0"

    def stall(crowd: Crowd, chance: random.Random) -> None:
        """Another program has the file for a moment, and one who waits for it is killed."""
        with closing(sqlite3.connect(path, isolation_level=None, timeout=20.0)) as db:
            db.execute("BEGIN IMMEDIATE")
            crowd.look_on(0.2)
            crowd.kill_publisher(chance)
            crowd.look_on(0.2)
            db.execute("ROLLBACK")

    return Arena("sqlite", url, url, 1.5, {"stall the file": stall})


@contextmanager
def redis_arena() -> Iterator[Arena]:
    with RedisProcess(appendonly=True) as redis, FaultProxy("127.0.0.1", redis.port) as proxy:
        options = "?lease=2.0"
        yield Arena("redis", proxy.through(redis.url) + options, redis.url + options, 3.0, of_server(redis, proxy))


@contextmanager
def rabbitmq_arena() -> Iterator[Arena]:
    with (
        RabbitProcess(config={"collect_statistics_interval": "500"}) as rabbit,
        FaultProxy("127.0.0.1", rabbit.port) as proxy,
    ):
        management = quote(f"http://127.0.0.1:{rabbit.management_port}", safe="")
        options = f"?lease=4&management={management}"
        yield Arena(
            "rabbitmq", proxy.through(rabbit.url) + options, rabbit.url + options, 8.0, of_server(rabbit, proxy)
        )


@contextmanager
def kafka_3_arena() -> Iterator[Arena]:
    """Everything can happen to it."""
    with kafka_arena("3.9.1") as arena:
        yield arena


@contextmanager
def kafka_4_arena() -> Iterator[Arena]:
    """
    It never lacks a leader for its partitions: it is not killed, and does not count as dead when it is frozen.

    A transaction that ends while 4.3.0 has none ends without its marks, and what lies behind it is hidden for ever.
    """
    with kafka_arena("4.3.0", {"broker.session.timeout.ms": "30000"}) as arena:
        yield replace(arena, faults=without_kills(arena.faults))


@contextmanager
def kafka_arena(version: str, config: Mapping[str, str] | None = None) -> Iterator[Arena]:
    """
    The proxy is in the way of each connection, also of those that a client makes to where it is told to go.

    What a killed consumer leaves open hides what lies behind it for 11 s, instead of 20.
    """
    config = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000", **(config or {})}
    with (
        KafkaProcess(version=version, proxied=True, config=config) as kafka,
        FaultProxy("127.0.0.1", kafka.proxied_port, at=kafka.proxy_port) as proxy,
    ):
        options = "?lease=2.0"
        url = f"kafka://127.0.0.1:{kafka.proxy_port}{options}"

        def freeze(crowd: Crowd, chance: random.Random) -> None:
            """The driver has sent nearly everything at once, except to a server that does not answer."""
            kafka.freeze()
            crowd.look_on(2.5)
            crowd.kill_publisher(chance)
            crowd.look_on(2.5)
            kafka.thaw()

        faults = of_server(kafka, proxy) | {"freeze the server": freeze}
        yield Arena("kafka", url, kafka.url + options, 3.0, faults, pace=0.02, slowness=4.0)


@contextmanager
def sqs_arena() -> Iterator[Arena]:
    """The server is frozen and never killed: an emulator forgets what it has."""
    with AwsProcess(program=program_of("ministack")) as aws, FaultProxy("127.0.0.1", aws.port) as proxy:
        options = "&lease=5&wait=1"
        faults = without_kills(of_server(aws, proxy))
        yield Arena("sqs", proxy.through(aws.url) + options, aws.url + options, 8.0, faults, pace=0.02, slowness=4.0)


def without_kills(faults: Mapping[str, Fault]) -> dict[str, Fault]:
    """Of a server that must not be killed."""
    return {name: fault for name, fault in faults.items() if name != "kill the server"}


def of_server(server: BrokerProcess, proxy: FaultProxy) -> dict[str, Fault]:
    """What can happen to a server and to the way there. Each fault is over when its function returns."""

    def kill(crowd: Crowd, chance: random.Random) -> None:
        server.kill()
        crowd.look_on(0.5)
        server.start()

    def reset(crowd: Crowd, chance: random.Random) -> None:
        proxy.reset()

    def freeze(crowd: Crowd, chance: random.Random) -> None:
        server.freeze()
        crowd.look_on(5.0)
        server.thaw()

    def lose_replies(crowd: Crowd, chance: random.Random) -> None:
        """What was asked is done, and nobody hears of it."""
        proxy.freeze_replies()
        crowd.wait_for_publishes(20, within=10.0)
        crowd.look_on(0.2)
        proxy.reset()
        proxy.thaw()

    return {
        "kill the server": kill,
        "reset connections": reset,
        "freeze the server": freeze,
        "lose replies": lose_replies,
    }
