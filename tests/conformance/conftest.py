"""A server per kind for the suite, started when its first case asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[object]:
    from tests.rabbit_server import running_server

    yield from running_server()
