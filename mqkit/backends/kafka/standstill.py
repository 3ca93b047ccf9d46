"""Partitions in which nothing is read although there is something: a transaction that has not ended hides it."""

from __future__ import annotations

from collections.abc import Mapping

from kafka import TopicPartition as Partition

LONGEST = 60.0  # seconds; a cluster ends the transactions of mqkit after 20


class Standstill:
    def __init__(self) -> None:
        self._since: dict[Partition, tuple[int, float]] = {}  # where each is, and since when

    def look(self, behind: Mapping[Partition, int], now: float) -> list[Partition]:
        """
        Args:
            behind: Where those are that have more to read.
            now: Seconds, monotonic.

        Returns:
            Those that have stood still for too long, each once in that time.
        """
        before = self._since
        self._since = {
            partition: before[partition] if before.get(partition, (None, 0.0))[0] == offset else (offset, now)
            for partition, offset in behind.items()
        }
        still = [partition for partition, (_, since) in self._since.items() if now - since > LONGEST]
        for partition in still:
            self._since[partition] = (behind[partition], now)
        return still
