"""Per-key lanes: of one key, only what may run now runs; the rest waits its turn in this process."""

from __future__ import annotations

from collections import deque
from typing import Any

from mqkit.message import Delivery


class Lane:
    """One key. `running` counts what was let through and is not finished; followers wait behind it."""

    __slots__ = ("batch", "failed", "followers", "running")

    def __init__(self, batch: Any) -> None:
        self.running = 1
        self.failed = False
        self.batch = batch  # the forming batch that holds the key: followers may join it until it is handed over
        self.followers: deque[Delivery[Any]] = deque()


class Lanes:
    """
    Decides who may start. Used by the pump thread only.

    Without batches a lane lets one message through at a time. A batch may hold several of one key, in order; a key that
    is in a running batch waits for it to end.
    """

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}

    def admit(self, delivery: Delivery[Any], batch: Any = None) -> bool:
        """May it start now (join `batch`)? If not it is kept, and comes back from `finished`."""
        key = delivery.key
        if key is None:
            return True
        lane = self._lanes.get(key)
        if lane is None:
            self._lanes[key] = Lane(batch)
            return True
        if batch is not None and lane.batch is batch and not lane.followers:
            lane.running += 1
            return True
        lane.followers.append(delivery)
        return False

    def finished(self, delivery: Delivery[Any], *, again: bool) -> tuple[list[Delivery[Any]], list[Delivery[Any]]]:
        """
        One that ran is settled.

        Args:
            again: It was released and will come back: nobody of its key may pass it.

        Returns:
            Those that may start now, and those to give back because one before them comes again.
        """
        key = delivery.key
        lane = self._lanes.get(key) if key is not None else None
        if lane is None or key is None:
            return [], []
        lane.running -= 1
        lane.failed |= again
        if lane.running:
            return [], []
        followers = list(lane.followers)
        del self._lanes[key]
        return ([], followers) if lane.failed else (followers, [])

    def dropped(self, delivery: Delivery[Any]) -> list[Delivery[Any]]:
        """One was revoked: its followers are void too, and the key starts anew."""
        lane = self._lanes.pop(delivery.key, None) if delivery.key is not None else None
        return list(lane.followers) if lane is not None else []

    def take_followers(self) -> set[int]:
        """Empty every lane's queue (they are given back); identities of what waited."""
        waiting = {id(follower) for lane in self._lanes.values() for follower in lane.followers}
        for lane in self._lanes.values():
            lane.followers.clear()
        return waiting

    def clear(self) -> None:
        self._lanes.clear()
