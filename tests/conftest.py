"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

# On a busy machine it says nothing how long an example takes.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The torture begins first: it is long, and at the end the other processes of the run would have nothing left to do."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/torture/"))
