"""The emulators of SQS and SNS that tests run on, where `make brokers` puts them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = Path(__file__).parents[1] / "build" / "brokers"
_NEEDS = {"ministack": "from a package index", "localstack": "as root, with docker"}
EMULATORS = tuple(_NEEDS)


def program_of(emulator: str) -> Path:
    """One that is absent fails its tests in CI, and skips them elsewhere."""
    program = _FOLDER / emulator / "bin" / emulator
    if not program.exists():
        reason = (
            f"{program.relative_to(_FOLDER.parent.parent)} is not here; `make brokers` brings it, {_NEEDS[emulator]}"
        )
        # MiniStack needs no container, so leaving containers out is no reason for its absence.
        left_out = emulator == "localstack" and os.environ.get("MQKIT_TEST_CONTAINERS") == "no"
        if os.environ.get("CI") and not left_out:
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return program
