"""
A web application whose bus is opened before its workers are forked, as servers do that load it once.

It is an application for gunicorn and its configuration at once: `gunicorn --preload --config python:... prefork_app:app`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from mqkit import Bus, Queue

visits = Queue("visits", str)
bus = Bus(os.environ["VISITS_URL"])
bus.publish(visits, "loaded")


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Publishes the path it is asked for, and answers with the process that did."""
    bus.publish(visits, environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def when_ready(server: object) -> None:
    """In the parent, once it listens."""
    bus.publish(visits, "ready")


def child_exit(server: object, worker: Any) -> None:
    """In the parent, after the death of each child."""
    bus.publish(visits, f"ended {worker.pid}")
