"""
Who of a group works on which partitions.

The driver's assignors balance all topics of a group together, so that one member could get everybody's messages and another
only what comes again. Here partition 3 of each topic goes to the same member, and stays where it is as far as that is fair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.protocol.consumer.metadata import ConsumerProtocolAssignment


def balanced(numbers: Sequence[int], owners: Mapping[int, str], members: Sequence[str]) -> dict[int, str]:
    """
    Each number's member: as even as it goes, moving as few as possible.

    Args:
        owners: Who has which of them now; may name some that are gone.
    """
    fewest, left = divmod(len(numbers), len(members))
    kept: dict[str, list[int]] = {member: [] for member in members}
    free: list[int] = []
    for number in numbers:
        owner = owners.get(number)
        if owner in kept and len(kept[owner]) < fewest:
            kept[owner].append(number)
        elif owner in kept and len(kept[owner]) == fewest and left:
            left -= 1
            kept[owner].append(number)
        else:
            free.append(number)
    for member in sorted(members, key=lambda one: len(kept[one])):
        more = fewest - len(kept[member])
        if more < 0:
            continue
        if left and more >= 0:
            more, left = more + 1, left - 1
        kept[member] += free[:more]
        free = free[more:]
    return {number: member for member, its in kept.items() for number in its}


class Assignor(CooperativeStickyAssignor):  # type: ignore[misc]
    """For consumers that keep no order. A group takes members only that agree on a name."""

    name = "mqkit"

    def assign(self, cluster: Any, members: Sequence[Any]) -> dict[str, Any]:
        """What moves is given up by its owner first, and assigned in the round that follows. Source: KIP-429."""
        topics = sorted({topic for member in members for topic in member.metadata.topics})
        partitions = {topic: sorted(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        owned = {
            (topic.topic, number): member.member_id
            for member in members
            for topic in member.metadata.owned_partitions or ()
            for number in topic.partitions
        }
        numbers = sorted({number for its in partitions.values() for number in its})
        now = {number: member for (_, number), member in owned.items()}
        wanted = balanced(numbers, now, sorted(member.member_id for member in members))
        return {
            member.member_id: ConsumerProtocolAssignment(
                self.version,
                [
                    (
                        topic,
                        [
                            number
                            for number in its
                            if wanted[number] == member.member_id
                            and owned.get((topic, number), member.member_id) == member.member_id
                        ],
                    )
                    for topic, its in partitions.items()
                ],
                b"",
            )
            for member in members
        }


class KeyAssignor(Assignor):
    """For consumers that keep the order of keys: they and the others cannot be in one group."""

    name = "mqkit-key"
