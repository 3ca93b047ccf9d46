"""Amazon SQS and SNS as a message broker; used through `SqsBackend`."""

from mqkit.backends.sqs.backend import SqsBackend

__all__ = ["SqsBackend"]
