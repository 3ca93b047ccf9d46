"""RabbitMQ: quorum queues, a topic exchange per topic, and one ladder of waiting queues for all delays."""

from mqkit.backends.rabbitmq.backend import RabbitBackend

__all__ = ["RabbitBackend"]
