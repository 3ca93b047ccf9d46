"""
The driver's consumer, used by the thread that owns it, which it keeps waiting only if it is told to.

Private names of the driver that mqkit uses for consuming are here, in `member.py` and in `batch.py`:
`_fetcher._fetch_futures` and `_paused_completed_fetches`, `_subscription.assignment`, `_coordinator`, `_net`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from kafka import KafkaConsumer
from kafka import TopicPartition as Partition
from kafka import errors as native

from mqkit.backends.kafka.batch import Damage, decode_with, records_in
from mqkit.backends.kafka.errors import translate
from mqkit.backends.kafka.network import learn, make_driver
from mqkit.backends.kafka.options import Cluster
from mqkit.backends.kafka.probe import probe
from mqkit.backends.kafka.standstill import Standstill
from mqkit.errors import Closed, Lost, MqkitError, Unavailable

FETCH_WAIT = 0.1  # seconds a broker may keep a fetch that finds nothing, which keeps others waiting too
ALL = sys.maxsize  # records of one poll: taking only a part of a fetch can stall its partition
FAREWELL = 2.0  # seconds a polite close may take
REPAIR = 30.0  # seconds until a batch that cannot be read is asked for again
LOOK = 10.0  # seconds between two looks whether everything moves

log = logging.getLogger("mqkit")

_NOT_ASKED = (native.UnknownBrokerIdError, RuntimeError)
# What means that others have our partitions, or will.
LEFT_OUT = (native.IllegalGenerationError, native.UnknownMemberIdError, native.RebalanceInProgressError)


class Consumer:
    """
    Raises:
        Unavailable, Denied, ConfigError: There is no such cluster.
    """

    def __init__(self, cluster: Cluster, *, fetch_bytes: int, **settings: Any) -> None:
        self.cluster = cluster
        self._pid = os.getpid()
        self._event = threading.Event()
        self._woken = False
        self._paused: set[Partition] = set()
        self._damaged: dict[Partition, float] = {}  # those that wait for repair, and until when
        settings = {
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "isolation_level": "read_committed",
            "fetch_max_wait_ms": round(FETCH_WAIT * 1000),
            "max_poll_records": ALL,
            "max_partition_fetch_bytes": max(fetch_bytes, cluster.options.max_body + 4096),
            "metadata_max_age_ms": 30_000,
            "allow_auto_create_topics": False,
            "metrics_enabled": False,
            **cluster.settings(),
            **settings,
        }
        self._standstill = Standstill()
        self._looked = time.monotonic()
        probe(cluster)
        try:
            self.driver = make_driver(KafkaConsumer, **settings)
        except native.KafkaError as exc:
            raise translate(exc, cluster) from exc
        decode_with(self.driver._fetcher)

    def learn(self, topics: Sequence[str]) -> dict[str, list[int]]:
        """The partitions of those of them that exist. Raises `Unavailable`."""
        answered = threading.Event()
        future = learn(self.driver._manager, topics, answered.set)
        if not answered.wait(self.cluster.options.patience):
            raise Unavailable(f"{self.cluster} does not say whether it has {', '.join(topics)}")
        if future.exception is not None:
            raise self.failure(future.exception) from future.exception
        metadata = self.driver._cluster
        return {topic: sorted(its) for topic in topics if (its := metadata.partitions_for_topic(topic))}

    def fetch(self, timeout: float = 0.0) -> dict[Partition, list[Any]]:
        """
        What has arrived; waits for something if it is told to.

        A batch that cannot be read is logged, and holds up what is behind it in its partition only.
        """
        self._check_usable()
        self._ask_again()
        self._look_whether_it_moves()
        try:
            fetched = self.driver.poll(round(timeout * 1000))
        except (native.KafkaError, RuntimeError) as exc:
            error = self.failure(exc)
            # The driver has noted that it asks a node for more, could not ask, and would never do so again.
            raise Lost(str(error)) if isinstance(exc, _NOT_ASKED) else error from exc
        for partition, its in fetched.items():
            if isinstance(its[-1], Damage):
                self._hold_back(partition, its[-1].error)
        return {partition: records for partition, its in fetched.items() if (records := records_in(its))}

    def wait(self, timeout: float) -> bool:
        """Until something arrives or happens, `wake` is called, or the time is over. Was it called?"""
        for future in list(self.driver._fetcher._fetch_futures):
            future.add_both(self.ring)
        self._event.wait(timeout)
        self._event.clear()
        woken, self._woken = self._woken, False
        return woken

    def wake(self) -> None:
        """From any thread; latched."""
        self._woken = True
        self._event.set()

    def ring(self, _: Any = None) -> None:
        """From the driver's thread: end a wait."""
        self._event.set()

    def begin(self, partition: Partition, offset: int) -> None:
        """Fetch from here on."""
        self._paused.discard(partition)
        self._damaged.pop(partition, None)
        with contextlib.suppress(ValueError):  # the group has taken it away, which is heard next
            self.driver.seek(partition, offset)
        _switch(self.driver.resume, [partition])

    def position(self, partition: Partition) -> int | None:
        """From where the next records will come, if that is known."""
        state = self.driver._subscription.assignment.get(partition)
        return None if state is None or state.position is None else int(state.position.offset)

    def pause(self, partitions: Collection[Partition]) -> None:
        self._paused.update(partitions)
        _switch(self.driver.pause, partitions)

    def resume(self, partitions: Collection[Partition]) -> None:
        self._paused.difference_update(partitions)
        _switch(self.driver.resume, [partition for partition in partitions if partition not in self._damaged])

    @property
    def damaged(self) -> Collection[Partition]:
        """Those that wait for repair."""
        return self._damaged.keys()

    def close(self) -> None:
        if os.getpid() == self._pid:
            with contextlib.suppress(Exception):  # a farewell that fails is none of our business
                self.driver.close(autocommit=False, timeout_ms=round(FAREWELL * 1000))

    def _hold_back(self, partition: Partition, error: Exception) -> None:
        where = {"topic": partition.topic, "partition": partition.partition, "offset": self.position(partition)}
        self._damaged[partition] = time.monotonic() + REPAIR
        _switch(self.driver.pause, [partition])
        log.error("batch.damaged", extra={**where, "error": f"{type(error).__name__}: {error}"})

    def _ask_again(self) -> None:
        """For what may have been repaired."""
        if not self._damaged:
            return
        now = time.monotonic()
        for partition in [partition for partition, until in self._damaged.items() if until <= now]:
            del self._damaged[partition]
            # Asked for before it was held back, so it is as old.
            self.driver._fetcher._paused_completed_fetches.pop(partition, None)
            if partition not in self._paused:
                _switch(self.driver.resume, [partition])

    def _look_whether_it_moves(self) -> None:
        """What a transaction hides that never ends, its consumers can only tell of."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        ends = {partition: state.highwater for partition, state in list(self.driver._subscription.assignment.items())}
        behind = {
            partition: position
            for partition, end in ends.items()
            if partition not in self._paused and partition not in self._damaged
            if (position := self.position(partition)) is not None and end is not None and position < end
        }
        for partition in self._standstill.look(behind, now):
            offset = behind[partition]
            where = {"topic": partition.topic, "partition": partition.partition, "offset": offset}
            log.warning("partition.held_up", extra={**where, "behind": ends[partition] - offset})

    def failure(self, exc: BaseException) -> MqkitError:
        error = translate(exc, self.cluster)
        return Lost(str(error)) if isinstance(exc, LEFT_OUT) else error

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise Closed("this connection to Kafka belongs to the parent of this forked process")


def _switch(switch: Callable[[Partition], None], partitions: Iterable[Partition]) -> None:
    """Those that are ours: the group may take them away at any moment, on the driver's thread."""
    for partition in partitions:
        with contextlib.suppress(KeyError):
            switch(partition)
