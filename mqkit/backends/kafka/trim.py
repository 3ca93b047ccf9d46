"""
Trimming: a topic that one group alone reads keeps its messages until they are handled, and not for ever.

Kafka deletes by age, which would take unread messages along. So these topics have no age, and what lies before the commits
is deleted now and then by whoever consumes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from kafka import TopicPartition as Partition
from kafka import errors as native

from mqkit.errors import MqkitError

EVERY = 60.0  # seconds
PATIENCE = 5000  # milliseconds


class Trimmer:
    """
    One per bus; connects when it has something to do. Nothing is waited for, and a failure is made up for by the next time.

    Names of the driver used here: the admin client's `_manager` and `_async_delete_records`.
    """

    def __init__(self, connect: Callable[[], Any], every: float = EVERY) -> None:
        self._connect = connect
        self._every = every
        self._driver: Any = None
        self._lock = threading.Lock()
        self._due: dict[str, float] = {}

    def trim(self, topic: str, positions: Callable[[], Mapping[Partition, int]]) -> None:
        """
        Args:
            positions: Committed offsets of partitions of this topic; asked when it is time.
        """
        now = time.monotonic()
        if now < self._due.setdefault(topic, now + self._every) or not self._lock.acquire(blocking=False):
            return
        try:
            self._due[topic] = now + self._every
            if offsets := positions():
                with contextlib.suppress(MqkitError, native.KafkaError, RuntimeError):
                    if self._driver is None:
                        self._driver = self._connect()
                    self._driver._manager.call_soon(self._driver._async_delete_records, offsets, PATIENCE, None)
        finally:
            self._lock.release()

    def after_fork(self) -> None:
        """In a forked child: the connection is the parent's, and so may be the thread that holds the lock."""
        self._driver, self._lock = None, threading.Lock()

    def close(self) -> None:
        with self._lock:
            driver, self._driver = self._driver, None
            if driver is not None:
                driver.close()
