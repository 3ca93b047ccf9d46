"""The command `mqkit`. Needs the extra `cli`; nothing else of mqkit imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

NEEDS = ("typer", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (that of the process if left out) and return its exit code."""
    try:
        from mqkit.cli.app import execute  # here, so that a missing extra is a sentence and not a traceback
    except ModuleNotFoundError as exc:
        if exc.name not in NEEDS:
            raise
        sys.stderr.write(
            f"mqkit: the command line needs {exc.name}, which is not installed: pip install 'mqkit[cli]'\n"
        )
        return 2
    return execute(sys.argv[1:] if argv is None else argv)
