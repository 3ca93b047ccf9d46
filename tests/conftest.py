"""What holds for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

# On a busy machine it says nothing how long an example takes.
settings.register_profile("untimed", parent=settings(), deadline=None)
settings.load_profile("untimed")


LONGEST = [  # of the files, the slowest first
    "tests/conformance/test_sqs.py",
    "tests/conformance/test_kafka.py",
    "tests/torture/test_torture.py",
    "tests/conformance/test_rabbitmq.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files begin first: one of them at the end leaves the other processes of the run with nothing to do."""

    def place(item: pytest.Item) -> int:
        file = item.nodeid.partition("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)
