"""What publishers and consumers wrote down during a torture, and the verdict on it. Pure: lines in, verdict out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = ("lost", "invented", "undead", "unpaid", "doubled")


@dataclass
class History:
    """
    Publishers write `try ID` before each attempt to send, then one of `ok ID`, `unknown ID` and `refused ID`.
    Consumers write `done ID DELIVERIES` when a handler succeeded, and `receipt ID` when what it staged has arrived.
    One event is one line.
    """

    tried: Counter[str] = field(default_factory=Counter)
    confirmed: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    done: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # deliveries, one per handling
    receipts: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, lines: Iterable[str]) -> History:
        history = cls()
        for line in lines:
            event, id, *rest = line.split()
            if event == "try":
                history.tried[id] += 1
            elif event == "ok":
                history.confirmed.add(id)
            elif event == "unknown":
                history.unknown.add(id)
            elif event == "refused":
                history.refused[id] += 1
            elif event == "done":
                history.done[id].append(int(rest[0]))
            elif event == "receipt":
                history.receipts.add(id)
        return history

    def verdict(self, dead: Iterable[str] = ()) -> Verdict:
        """
        Args:
            dead: Ids among the dead letters; a message is done or there.
        """
        dead = set(dead)
        return Verdict(
            lost=sorted(self.confirmed - self.done.keys() - dead),
            invented=sorted((self.done.keys() | dead) - self.tried.keys()),
            # Refused for certain, every time, and handled all the same. A killed publisher leaves a try without an answer.
            undead=sorted(id for id in self.done if 0 < self.tried[id] == self.refused[id]),
            unpaid=sorted(self.done.keys() ^ self.receipts),
            doubled=sorted(id for id, handlings in self.done.items() if not self._explained(id, handlings)),
            handled=len(self.done),
            handlings=sum(map(len, self.done.values())),
        )

    def _explained(self, id: str, handlings: list[int]) -> bool:
        """More than one handling needs as many marks: a redelivery says so, a message sent again may be there twice."""
        sent = self.tried[id] if id in self.unknown else 1
        return sum(deliveries <= 1 for deliveries in handlings) <= sent


@dataclass(frozen=True)
class Verdict:
    """The lists hold message ids and are empty when all is well."""

    lost: list[str]
    invented: list[str]
    undead: list[str]
    unpaid: list[str]  # done and what it staged never came, or the other way round
    doubled: list[str]  # handled more often than redeliveries and resends can explain
    handled: int
    handlings: int

    @property
    def clean(self) -> bool:
        return not any(getattr(self, kind) for kind in KINDS)

    def __str__(self) -> str:
        found = ", ".join(f"{len(getattr(self, kind))} {kind} {getattr(self, kind)[:3]}" for kind in KINDS)
        return f"{self.handled} messages handled in {self.handlings} handlings: {found}"
