"""Servers of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mqkit.testing.brokers import Certificates, RedisProcess


@pytest.fixture
def server() -> Iterator[RedisProcess]:
    with RedisProcess(appendonly=True) as server:
        yield server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder: Path = tmp_path_factory.mktemp("certificates")
    return Certificates.make(folder)
