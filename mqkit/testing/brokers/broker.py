"""Broker: one that runs and that tests may use."""

from __future__ import annotations

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker is, and who provides it. Plain values, so it travels to other processes."""

    kind: str
    url: str = dataclasses.field(repr=False)  # with an account that may do everything
    management_url: str | None = dataclasses.field(repr=False)  # RabbitMQ's HTTP API
    provider: str  # for people: "process", "container redis:8", "MQKIT_TEST_REDIS_URL"
    seconds: float  # that its start took


class Running(Protocol):
    """What a provider hands out, whichever it is."""

    @property
    def broker(self) -> Broker: ...

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of its log; empty where nobody can read it."""
        ...

    def close(self) -> None:
        """End it with its data, if it was started for us."""
        ...
