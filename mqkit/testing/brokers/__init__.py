"""
Brokers for tests: RabbitMQ, Redis, Kafka and SQS from the environment, in a container or as a process, and certificates for
them.

    with RedisProcess(appendonly=True) as redis:
        redis.url
        redis.kill()
        redis.start()  # the same port, the same data

`provide("redis")` takes whatever is there; the pytest plugin shares one of them among all tests of a run.
"""

from mqkit.testing.brokers.aws import GAPS, AwsProcess, aws_client
from mqkit.testing.brokers.broker import Broker, Running
from mqkit.testing.brokers.certificates import Certificates
from mqkit.testing.brokers.container import BrokerContainer
from mqkit.testing.brokers.errors import BrokerAbsent, BrokerFailed
from mqkit.testing.brokers.kafka import KafkaMechanism, KafkaProcess
from mqkit.testing.brokers.kinds import KINDS, Kind
from mqkit.testing.brokers.pool import BrokerPool, RemotePool
from mqkit.testing.brokers.process import BrokerProcess
from mqkit.testing.brokers.providers import provide
from mqkit.testing.brokers.rabbitmq import RabbitProcess, RabbitUser
from mqkit.testing.brokers.redis import RedisProcess, RedisUser

__all__ = [
    "GAPS",
    "KINDS",
    "AwsProcess",
    "Broker",
    "BrokerAbsent",
    "BrokerContainer",
    "BrokerFailed",
    "BrokerPool",
    "BrokerProcess",
    "Certificates",
    "KafkaMechanism",
    "KafkaProcess",
    "Kind",
    "RabbitProcess",
    "RabbitUser",
    "RedisProcess",
    "RedisUser",
    "RemotePool",
    "Running",
    "aws_client",
    "provide",
]
