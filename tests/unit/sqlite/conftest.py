from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_station import Station


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


@pytest.fixture
def open_station(path: Path) -> Iterator[Callable[..., Station]]:
    """Open the test's file, closed at the end of the test."""
    stations: list[Station] = []

    def open_one(at: object = path, **options: Any) -> Station:
        stations.append(Station(at, **options))
        return stations[-1]

    yield open_one
    for station in stations:
        station.close()


@pytest.fixture
def station(open_station: Callable[..., Station]) -> Station:
    return open_station()
