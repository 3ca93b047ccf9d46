"""Dramatiq on a broker of its own: what it does is the same on each."""

from __future__ import annotations

from typing import Any

import dramatiq

from benchmarks.sample import LARGE, Sample, Stopwatch, wait_until


def publish(broker: dramatiq.Broker, messages: int) -> Sample:
    actor, _ = _actor(broker)
    sample = _fill(actor, messages)
    broker.close()
    return sample


def consume(broker: dramatiq.Broker, messages: int) -> Sample:
    """With its default of eight threads."""
    actor, handled = _actor(broker)
    _fill(actor, messages)
    worker = dramatiq.Worker(broker)
    watch = Stopwatch()
    worker.start()
    wait_until(lambda: len(handled) == messages)
    sample = watch.sample(messages)
    worker.stop()
    broker.close()
    return sample


def _actor(broker: dramatiq.Broker) -> tuple[Any, list[Any]]:
    dramatiq.set_broker(broker)
    handled: list[Any] = []
    return dramatiq.actor(handled.append, actor_name="handle", queue_name="tasks"), handled


def _fill(actor: Any, messages: int) -> Sample:
    watch = Stopwatch()
    for _ in range(messages):
        actor.send(LARGE)
    return watch.sample(messages)
