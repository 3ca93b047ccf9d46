"""mqkit: one API over many message brokers. Delivered, retried, dead-lettered, ordered and done mean the same on each."""

import logging

from mqkit.aio import AsyncBus
from mqkit.bus import Bus
from mqkit.destinations import Broadcast, Queue, Topic
from mqkit.errors import MqkitError, PublishFailed, PublishUnknown, TimedOut
from mqkit.handlers import Batch, Handlers
from mqkit.health import Health
from mqkit.message import DeadLetter, Delivery, Message, PublishOptions
from mqkit.patterns.retry import Retry, exponential, fixed, linear
from mqkit.verdicts import Ack, Reject, RetryLater
from mqkit.worker import run

# Events carry their fields in `extra`; an application that configures no logging gets silence, not bare event names.
logging.getLogger("mqkit").addHandler(logging.NullHandler())

__all__ = [
    "Ack",
    "AsyncBus",
    "Batch",
    "Broadcast",
    "Bus",
    "DeadLetter",
    "Delivery",
    "Handlers",
    "Health",
    "Message",
    "MqkitError",
    "PublishFailed",
    "PublishOptions",
    "PublishUnknown",
    "Queue",
    "Reject",
    "Retry",
    "RetryLater",
    "TimedOut",
    "Topic",
    "exponential",
    "fixed",
    "linear",
    "run",
]
