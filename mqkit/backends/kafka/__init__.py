"""Apache Kafka as a message broker; used through `KafkaBackend`."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of what the driver does when it is imported
    import kafka  # noqa: F401

from mqkit.backends.kafka.backend import KafkaBackend

__all__ = ["KafkaBackend"]
