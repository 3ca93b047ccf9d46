"""The conformance suite on sqlite://, one file per case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqkit.testing.conformance import *  # noqa: F403
from mqkit.testing.conformance import Harness


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(f"sqlite:///{tmp_path / 'mqkit.db'}")
    yield harness
    harness.close()
