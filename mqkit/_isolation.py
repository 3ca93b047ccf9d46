"""Isolation: messages that may kill their process, and which of them runs alone."""

from __future__ import annotations

from typing import Any

from mqkit.message import Delivery


class Isolation:
    """
    Suspects were handed out too often without a verdict. One is run with nothing else in hand: if that has killed its
    process before, it is the culprit and not a neighbour. With order one becomes a suspect when its turn has come, and
    everything behind it is held, so there is one at a time. Used by the pump thread only.
    """

    def __init__(self) -> None:
        self.suspects: list[Delivery[Any]] = []
        self.held: list[Delivery[Any]] = []  # came with a suspect: given back at once, never started
        self.alone: Delivery[Any] | None = None  # runs with nothing else in hand

    def single_out(self) -> list[Delivery[Any]]:
        """Keep the first suspect; the others, to be given back."""
        others = self.suspects[1:]
        del self.suspects[1:]
        return others

    def dropped(self, delivery: Delivery[Any]) -> None:
        """One was revoked."""
        self.suspects = [one for one in self.suspects if one is not delivery]
        if self.alone is delivery:
            self.alone = None

    def ended(self, delivery: Delivery[Any]) -> None:
        """One was settled. If it ran alone, the others may come again."""
        if delivery is self.alone:
            self.alone = None
            self.suspects.clear()

    def stop(self) -> None:
        """Nobody else will be run alone: the other suspects are given back."""
        self.held += [suspect for suspect in self.suspects if suspect is not self.alone]
        self.suspects = [self.alone] if self.alone is not None else []

    def clear(self) -> None:
        self.suspects.clear()
        self.held.clear()
        self.alone = None
