"""
Brokers for tests: RabbitMQ and Redis as processes of our own, and certificates for them.

    with RedisProcess(appendonly=True) as redis:
        redis.url
        redis.kill()
        redis.start()  # the same port, the same data
"""

from mqkit.testing.brokers.certificates import Certificates
from mqkit.testing.brokers.errors import BrokerAbsent, BrokerFailed
from mqkit.testing.brokers.process import BrokerProcess
from mqkit.testing.brokers.rabbitmq import RabbitProcess, RabbitUser
from mqkit.testing.brokers.redis import RedisProcess, RedisUser

__all__ = [
    "BrokerAbsent",
    "BrokerFailed",
    "BrokerProcess",
    "Certificates",
    "RabbitProcess",
    "RabbitUser",
    "RedisProcess",
    "RedisUser",
]
