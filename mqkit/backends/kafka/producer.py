"""
The driver's producers: one that publishes, idempotent and confirmed by all replicas, and one whose records and commits are
one transaction. Private names of the driver that mqkit uses for producing are in this file: `_accumulator`, `_metadata`,
`_partition`, `_sender`, `_transaction_manager` with its `_lock` and `_current_state`, `_unregister_cleanup`; and in `sent.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from kafka import KafkaProducer, TopicPartition
from kafka import errors as native
from kafka.producer.transaction_manager import TransactionState
from kafka.structs import OffsetAndMetadata

from mqkit.backends.kafka.errors import reason_of, transaction_error, translate
from mqkit.backends.kafka.network import learn, make_driver
from mqkit.backends.kafka.options import ROOM, Cluster
from mqkit.backends.kafka.probe import probe
from mqkit.backends.kafka.record import ProducerRecord
from mqkit.backends.kafka.sent import First, appender
from mqkit.errors import Closed, Lost, NotFound, Unavailable

TRANSACTION = (
    10.0  # seconds after which the broker gives up one that was left open; until then it hides what comes later
)
BATCH = 1 << 18  # bytes of one partition that go together; the driver's own 16 KiB cost 1.6 times the CPU under load
LARGEST = 64 << 20  # bytes: others' messages are as large as their topic lets them, and so are copies of those
FAREWELL = 1.0  # seconds a close may take
EXPIRY = 30.0  # seconds beyond the patience for which the driver tries to deliver a batch
STALLED = 1.0  # seconds without an answer after which it is asked whether the topic is still there


class Undecided(Lost):
    """A transaction whose end nobody knows. Positions that are read anew tell what became of it."""


class Producer:
    """
    Raises:
        Unavailable, Denied, ConfigError: There is no such cluster.
    """

    def __init__(self, cluster: Cluster, transactional_id: str | None = None) -> None:
        self.cluster = cluster
        self._identified = False
        self._began = False  # is there a batch that the driver's thread has not been told of?
        self._append = appender()
        self._pid = os.getpid()
        options = cluster.options
        settings = {
            "acks": "all",
            "metrics_enabled": False,
            "enable_idempotence": True,
            "allow_auto_create_topics": False,
            "max_block_ms": 0,  # `send` must not wait: it is asked before where a topic is
            "max_request_size": max(options.largest, LARGEST + ROOM if transactional_id else 0),
            "batch_size": min(BATCH, options.largest),
            "compression_type": None if options.compression == "none" else options.compression,
            "delivery_timeout_ms": round((options.patience + EXPIRY) * 1000),
            "retry_backoff_ms": 5 if transactional_id else 100,
            **cluster.settings(),
        }
        if transactional_id:
            settings |= {"transactional_id": transactional_id, "transaction_timeout_ms": round(TRANSACTION * 1000)}
        probe(cluster)
        try:
            self.driver = make_driver(KafkaProducer, **settings)
            # At the end of the program it would close before the bus that still sends, and in a forked child flush for its parent.
            self.driver._unregister_cleanup()
        except native.KafkaError as exc:
            raise translate(exc, cluster) from exc

    def knows(self, topic: str) -> bool:
        """Whether it exists, asked of the cluster if need be. Raises `Unavailable`."""
        if not self.partitions(topic):
            answered = threading.Event()
            future = self.ask_for([topic], answered.set)
            if not answered.wait(self.cluster.options.patience):
                raise Unavailable(f"{self.cluster} does not say whether it has {topic}")
            if future.exception is not None:
                raise translate(future.exception, self.cluster)
        return bool(self.partitions(topic))

    def ask_for(self, topics: Iterable[str], ring: Callable[[], object] = lambda: None) -> Any:
        """A future, see `learn`; when it is done, `partitions` knows whether the cluster has these topics."""
        return learn(self.driver._metadata._manager, topics, ring)

    def partitions(self, topic: str) -> Sequence[int]:
        """Of a topic that is known; else none."""
        return tuple(self.driver._metadata.partitions_for_topic(topic) or ())

    def check_usable(self) -> None:
        """Raises `Closed`."""
        if os.getpid() != self._pid:
            raise Closed("this connection to Kafka belongs to the parent of this forked process")

    def send(self, record: ProducerRecord) -> Any:
        """The driver's future. Raises what is wrong with the record, and `NotFound`."""
        self.check_usable()
        try:
            return self.driver.send(
                record.topic, record.value, key=record.key, headers=record.headers, partition=record.partition
            )
        except native.KafkaTimeoutError as exc:
            raise NotFound(f"{self.cluster} does not have {record.topic}; declare it") from exc
        except (native.KafkaError, ValueError, AssertionError) as exc:
            raise translate(exc, self.cluster) from exc

    def append(self, record: ProducerRecord, place: TopicPartition, ring: Callable[[Any], object]) -> Any:
        """
        `send` outside of a transaction, to a partition that is there; without what the driver looks at for each record and
        is known here. Whoever appends has asked whether this producer is usable, and calls `send_appended` afterwards.

        Args:
            ring: See `Sent`.

        Returns:
            Something with `is_done`, and then `exception`.
        """
        try:
            sent = self._append(self.driver._accumulator, place, record, ring)
        except native.KafkaError as exc:
            raise translate(exc, self.cluster) from exc
        if sent.__class__ is First:
            self._began = True
        return sent

    def send_appended(self) -> None:
        """Have the driver's thread look for what was appended. Of a batch that was there before it knows."""
        if self._began:
            self._began = False
            self.driver._sender.wakeup()

    @property
    def identified(self) -> bool:
        """May it have sent anything? A cluster takes nothing of a producer to which it has given no id."""
        return self._identified or bool(self.driver._transaction_manager.has_producer_id())

    @property
    def spoilt(self) -> bool:
        """
        Does it send nothing more? Has to be asked now and then.

        So it is after some refusals, of which one is that a topic does not take a message of this size; the driver gives up
        all others with the error of that. And after a batch of which nobody knows whether it was written has expired: then
        the driver forgets who it is, and does not ask again.
        """
        manager = self.driver._transaction_manager
        if manager.has_producer_id():
            self._identified = True
            return bool(manager.has_fatal_error())
        if manager.has_fatal_error():
            return True
        with manager._lock:  # it may be about to get its first
            return manager._current_state == TransactionState.READY and not manager.has_producer_id()

    def partition_for(self, topic: str, key: bytes) -> int:
        """As Java clients choose it. Raises `NotFound`."""
        found: int | None = self.driver._partition(topic, None, key, None, key, None)
        if found is None:
            raise NotFound(f"{self.cluster} does not have {topic}; declare it")
        return found

    def close(self, timeout: float) -> None:
        """What is not confirmed in that time is given up."""
        if os.getpid() != self._pid:
            return
        try:
            self.driver.flush(timeout)
        except native.KafkaError:
            self.driver._sender.force_close()
        with contextlib.suppress(Exception):  # a farewell that fails is none of our business
            self.driver.close(timeout=FAREWELL)


class Transactions:
    """One producer of a name that nobody else has. Made when the first transaction is needed."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._producer: Producer | None = None

    def carry_out(
        self, records: Sequence[ProducerRecord], offsets: Mapping[TopicPartition, OffsetAndMetadata], group: Any
    ) -> None:
        """
        All of it or nothing.

        Raises:
            Undecided: All of it or nothing, nobody knows.
            Lost: Others have these partitions; nothing happened.
            NotFound, PublishFailed, ...: A record was refused; nothing happened.
            Unavailable: The cluster does not answer, or does not take it now; nothing happened.
        """
        producer = self._opened()
        driver = producer.driver
        for topic in {record.topic for record in records}:
            if not producer.knows(topic):
                raise NotFound(f"{self._cluster} does not have {topic}; declare it")
        futures: list[Any] = []
        try:
            driver.begin_transaction()
            for record in records:
                futures.append(producer.send(record))
            if offsets:
                manager = driver._transaction_manager
                self._bounded(driver, lambda: manager.send_offsets_to_transaction(dict(offsets), group))
            self._await(producer, futures, {record.topic for record in records})
        except BaseException as exc:
            failures = (
                driver._transaction_manager.last_error,
                *(future.exception for future in futures if future.is_done),
            )
            noted = [failure for failure in failures if failure is not None]
            if not isinstance(exc, (NotFound, Unavailable)):  # what these are about would be waited for before an end
                self._abort(driver)
            self._discard()
            if (error := reason_of(exc, noted, self._cluster)) is exc:
                raise
            raise error from exc
        self._commit(driver)

    def knows(self, topic: str) -> bool:
        """As `Producer.knows`."""
        return self._opened().knows(topic)

    def partitions(self, topic: str) -> Sequence[int]:
        """As `Producer.partitions`."""
        return self._opened().partitions(topic)

    def _await(self, producer: Producer, futures: Sequence[Any], topics: set[str]) -> None:
        """
        Until the records are written.

        Raises:
            NotFound: The driver would go on for long to send to a topic that was deleted.
            Unavailable: It takes too long.
        """
        if not futures:
            return
        deadline = time.monotonic() + self._cluster.options.patience
        producer.driver._sender.wakeup()
        answered = threading.Event()
        for future in reversed(futures):  # where the last one of a partition is written, so are those before it
            while not future.is_done:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{self._cluster} does not take what a transaction is about")
                with contextlib.suppress(native.KafkaTimeoutError):
                    future.get(STALLED)
                    break
                answered.clear()
                producer.ask_for(topics, answered.set)
                if answered.wait(STALLED) and (
                    missing := [topic for topic in topics if not producer.partitions(topic)]
                ):
                    raise NotFound(f"{self._cluster} does not have {missing[0]} any more")
            if future.exception is not None:  # one that expired is not noticed by the transaction
                raise future.exception

    def close(self) -> None:
        self._discard(FAREWELL)

    def _discard(self, timeout: float = 0.0) -> None:
        """Its open transaction is ended by the next producer of this name."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout)

    def _opened(self) -> Producer:
        if self._producer is None:
            producer = Producer(self._cluster, self._name)
            try:
                producer.driver.config["max_block_ms"] = round(self._cluster.options.patience * 1000)
                producer.driver.init_transactions()
            except native.KafkaError as exc:
                producer.close(0)
                raise translate(exc, self._cluster) from exc
            self._producer = producer
        return self._producer

    def _commit(self, driver: Any) -> None:
        manager = driver._transaction_manager
        try:
            self._bounded(driver, manager.begin_commit)
        except Exception as exc:
            refused = manager.has_abortable_error()  # so the cluster was not asked to commit
            if refused:
                self._abort(driver)
            self._discard()
            if refused:
                raise transaction_error([exc], self._cluster) from exc
            raise Undecided(f"{self._cluster} does not say whether a transaction is committed ({exc})") from exc

    def _abort(self, driver: Any) -> None:
        # Where it is fenced, or the connection is gone, the next producer of this name does it.
        with contextlib.suppress(Exception):
            self._bounded(driver, driver._transaction_manager.begin_abort)

    def _bounded(self, driver: Any, begin: Callable[[], Any]) -> None:
        """The driver's own ways to take part in a transaction and to end it have no bound."""
        result = begin()
        driver._sender.wakeup()
        if not result.wait(self._cluster.options.patience * 1000):
            raise Unavailable(f"{self._cluster} does not answer")
