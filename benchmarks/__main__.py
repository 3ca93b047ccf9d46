"""`python -m benchmarks [--only NAME] [--rounds N] [--json FILE]`"""

from __future__ import annotations

import argparse
import json
import platform
import sqlite3
import sys
from pathlib import Path

from benchmarks.contests import CONTESTS
from benchmarks.report import table


def main() -> int:
    names = [contest.name for contest in CONTESTS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure mqkit. See benchmarks/README.md."
    )
    parser.add_argument("--only", action="append", choices=names, help="this contest; may be given more than once")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side runs (default 5)")
    parser.add_argument("--json", type=Path, help="write every sample to this file as well")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be 1 or more")

    contests = [contest for contest in CONTESTS if not given.only or contest.name in given.only]
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {given.rounds} rounds")
    results = {}
    for contest in contests:
        results[contest.name] = runs = contest.run(given.rounds, lambda line: print(line, file=sys.stderr, flush=True))
        print("\n".join(table(contest, runs)), flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any(contest.failures for contest in contests) else 0


if __name__ == "__main__":
    sys.exit(main())
