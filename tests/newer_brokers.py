"""Servers of newer versions than those that Debian 12 has, where `make brokers` unpacks them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[1] / "build" / "brokers"


def rabbitmq_4() -> Path:
    return _there(_FOLDER / "rabbitmq-4" / "bin" / "rabbitmq-server")


def redis_8() -> Path:
    return _there(_FOLDER / "redis-8" / "bin" / "redis-server")


def _there(program: Path) -> Path:
    """One that is absent fails its tests in CI, and skips them elsewhere."""
    if not program.exists():
        reason = f"{program.relative_to(_FOLDER.parent.parent)} is not here; `make brokers` unpacks it, as root"
        if os.environ.get("CI") and os.environ.get("MQKIT_TEST_CONTAINERS") != "no":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return program
