"""What tests with processes of their own share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.processes import Lines


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()
