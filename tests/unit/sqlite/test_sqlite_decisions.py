"""What is decided without a file: options, paths, mounts, the clock, warnings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mqkit._clock import SystemClock
from mqkit._url import Url
from mqkit.backends.sqlite import SqliteBackend
from mqkit.backends.sqlite.clock import choose_offset
from mqkit.backends.sqlite.file import mount_type, sqlite_has_wal_reset_defect
from mqkit.backends.sqlite.options import file_path
from mqkit.errors import ConfigError


def backend(text: str) -> SqliteBackend:
    return SqliteBackend(Url.parse(text), SystemClock())


@pytest.mark.parametrize("text", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_a_url_without_a_file_points_to_memory(text: str) -> None:
    with pytest.raises(ConfigError, match="memory://"):
        backend(text)


def test_two_slashes_are_too_few() -> None:
    with pytest.raises(ConfigError, match="slashes"):
        backend("sqlite://app.db")


def test_relative_and_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to(tmp_path / "app.db")

    names = [f"sqlite:///{name}" for name in ("app.db", "link.db", f"{tmp_path}/app.db")]

    assert {file_path(Url.parse(name)) for name in names} == {os.path.realpath(tmp_path / "app.db")}


@pytest.mark.parametrize(
    ("query", "complaint"), [("lease=0.1", "lease=0.1"), ("synchronous=off", "synchronous"), ("leese=3", "lease")]
)
def test_wrong_options_are_named(query: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        backend(f"sqlite:///app.db?{query}")


def test_options_reach_the_capabilities() -> None:
    capabilities = backend("sqlite:///app.db?lease=7&max_body=10000").capabilities

    assert (capabilities.lease, capabilities.max_body) == (7.0, 10000)


def test_making_a_backend_creates_no_file(tmp_path: Path) -> None:
    backend(f"sqlite:///{tmp_path}/app.db")

    assert list(tmp_path.iterdir()) == []


def test_the_longest_mount_point_decides() -> None:
    mounts = [
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
        "23 22 0:30 / /data rw shared:1 - nfs4 server:/export rw",
        "24 23 0:31 / /data/my\\040disk rw - xfs /dev/vdb rw",
    ]

    assert mount_type("/home/app.db", mounts) == "ext4"
    assert mount_type("/data/app.db", mounts) == "nfs4"
    assert mount_type("/data/my disk/app.db", mounts) == "xfs"
    assert mount_type("/database/app.db", mounts) == "ext4"


def test_the_clock_of_a_file_never_goes_back_over_a_boot() -> None:
    assert choose_offset(wall=1000.0, last=900.0, boot=10.0) == 990.0
    assert choose_offset(wall=5.0, last=900.0, boot=10.0) == 890.0


def test_the_defect_is_known_by_version() -> None:
    assert [sqlite_has_wal_reset_defect(version) for version in ((3, 6, 23), (3, 40, 1), (3, 51, 2), (3, 51, 3))] == [
        False,
        True,
        True,
        False,
    ]


def test_warnings_tell_what_power_loss_may_take(tmp_path: Path) -> None:
    one = backend(f"sqlite:///{tmp_path}/app.db?synchronous=normal")

    assert any("power loss" in warning for warning in one.warnings())
    assert not any("power loss" in warning for warning in backend(f"sqlite:///{tmp_path}/app.db").warnings())
