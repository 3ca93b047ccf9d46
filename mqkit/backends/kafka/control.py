"""The driver's admin client, with its errors translated and coordinators waited for that are not ready yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import KafkaAdminClient
from kafka import TopicPartition as Partition
from kafka import errors as native
from kafka.admin import OffsetSpec
from kafka.protocol.consumer import IsolationLevel
from kafka.structs import OffsetAndMetadata

from mqkit.backends.kafka.errors import translate
from mqkit.backends.kafka.network import make_driver
from mqkit.backends.kafka.options import Cluster
from mqkit.backends.kafka.probe import probe

WAIT = 0.1  # seconds until a coordinator that is not ready is asked again
ENDING = 1.0  # seconds that transactions have which are about to end; one of a dead process stays open for longer
LOOK = 0.01  # seconds between two looks whether they have
_NOT_READY = (native.CoordinatorNotAvailableError, native.CoordinatorLoadInProgressError, native.NotCoordinatorError)

Positions = dict[Partition, OffsetAndMetadata]


class Control:
    """
    Every method raises `Unavailable`, `Denied` or `ConfigError` for what the cluster has against it.

    Attributes:
        driver: For what has no method here.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        probe(cluster)
        try:
            self.driver = make_driver(KafkaAdminClient, **cluster.settings())
        except native.KafkaError as exc:
            raise translate(exc, cluster) from exc

    def topics(self) -> dict[str, int]:
        """With their numbers of partitions."""
        return {topic["name"]: len(topic["partitions"]) for topic in self.call(self.driver.describe_topics)}

    def offsets(self, partitions: Iterable[Partition], at: OffsetSpec | int) -> dict[Partition, int]:
        """
        Args:
            at: The first, or epoch milliseconds for the first that is not older; -1 where there is none.
        """
        return self._offsets(dict.fromkeys(partitions, at), IsolationLevel.READ_COMMITTED)

    def written(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Behind what is there now, be it in open transactions."""
        return self._offsets(dict.fromkeys(partitions, OffsetSpec.LATEST), IsolationLevel.READ_UNCOMMITTED)

    def ends(self, written: Mapping[Partition, int]) -> dict[Partition, int]:
        """
        Behind what is there and in no open transaction, nor behind one.

        A cluster says that a transaction is committed before all its partitions have the mark of that, so what is about to end
        is waited for: a dead letter is there when its message is not any more.

        Args:
            written: Up to where that is to be so; it stays short of it while the transaction of a dead process is open.
        """
        wanted = dict.fromkeys(written, OffsetSpec.LATEST)
        deadline = time.monotonic() + ENDING
        while True:
            ends = self._offsets(wanted, IsolationLevel.READ_COMMITTED)
            if all(ends[place] >= end for place, end in written.items()) or time.monotonic() > deadline:
                return ends
            time.sleep(LOOK)

    def _offsets(self, wanted: Mapping[Partition, OffsetSpec | int], isolation: IsolationLevel) -> dict[Partition, int]:
        if not wanted:
            return {}
        found = self.call(self.driver.list_partition_offsets, dict(wanted), isolation)
        return {place: offset.offset for place, offset in found.items()}

    def committed(self, groups: Iterable[str]) -> dict[str, Positions]:
        """Of each group, what it has committed."""
        wanted = list(groups)
        if not wanted:
            return {}
        found = self.call(self.driver.list_group_offsets, wanted)
        return {
            group: {place: position for place, position in found.get(group, {}).items() if position.offset >= 0}
            for group in wanted
        }

    def commit(self, group: str, positions: Mapping[Partition, OffsetAndMetadata]) -> bool:
        """False: the group has members, who alone may."""
        done = True
        for error in self.call(self.driver.alter_group_offsets, group, dict(positions)).values():
            if error is native.UnknownMemberIdError:
                done = False
            elif error is not native.NoError:
                raise translate(error(), self._cluster)
        return done

    def call(self, method: Callable[..., Any], *args: Any, **named: Any) -> Any:
        deadline = time.monotonic() + self._cluster.options.patience
        while True:
            try:
                return method(*args, **named)
            except native.KafkaError as exc:
                if not isinstance(exc, _NOT_READY) or time.monotonic() > deadline:
                    raise translate(exc, self._cluster) from exc
                time.sleep(WAIT)

    def close(self) -> None:
        self.driver.close()


def partitions_of(topic: str, count: int) -> list[Partition]:
    return [Partition(topic, number) for number in range(count)]
