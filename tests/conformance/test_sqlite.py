"""The conformance suite on sqlite://, one file per case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqkit.native import SqliteTopic
from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness


class SqliteHarness(Harness):
    def retention(self, seconds: float) -> object:
        return SqliteTopic(retain=seconds)


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = SqliteHarness(f"sqlite:///{tmp_path / 'mqkit.db'}")
    yield harness
    harness.close()
