"""
The table of guarantees, from what the conformance suite found:

    pytest tests/conformance --mqkit-results=results.jsonl
    python -m mqkit.testing.conformance.report results.jsonl > docs/guarantees.md
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TITLES = {
    "A": "Lifecycle",
    "B": "Publish and receive",
    "C": "Acknowledgement, redelivery, lease",
    "D": "Groups and scaling",
    "E": "Ordering",
    "F": "Failures, dead letters, replay",
    "G": "Delay, time to live, priority",
    "H": "Batches",
    "I": "Request and reply",
    "J": "Faults of the system",
    "K": "Topology, configuration, errors",
    "L": "Cancellation, threads, asyncio",
    "M": "Stores",
    "N": "Observability and tools",
}

CELLS = {"passed": "yes", "failed": "**no**", "skipped": "-", "": ""}
WORST = ("failed", "passed", "skipped")

NOT_YET = {
    "J.09, J.11": "the loss of a node of a cluster and credentials that expire need more than one server; a nightly run's work",
    "J.10": "a file that is locked, full or away is a matter of SQLite, whose own tests ask it; checkpoints under load too",
    "J.12": "a memory alarm is a matter of RabbitMQ, whose own tests ask it",
    "F.14 (in part)": "dead letters do not expire: they stay until they are replayed or purged, and that is tested",
    "F.21, F.22": "the circuit breaker is a pattern that does not exist yet",
    "F.23": "the rate limit is a pattern that does not exist yet; replay has `rate=`",
    "G.06, G.12": "the scheduler is a pattern that does not exist yet; delays are tested",
}

HEAD = """# Guarantees

Generated from a run of the conformance suite; do not edit. Each row is a test that ran on each backend against the real
system: **yes** it holds, **no** it does not, `-` the backend does not have what the case needs (named below the table), and
an empty cell was not run.
"""


@dataclasses.dataclass
class Findings:
    """What the files say: per backend its capabilities; per case and title, per backend, what became of it."""

    capabilities: dict[str, Mapping[str, Any]]
    outcomes: dict[tuple[str, str], dict[str, str]]
    skips: dict[str, set[str]]

    @property
    def backends(self) -> Sequence[str]:
        """In the order of their names: that of the file is chance where several processes ran them."""
        return sorted(self.capabilities)


def read(lines: Iterable[str]) -> Findings:
    """A case that several lines tell of, being parametrised, has the worst of their outcomes."""
    found = Findings({}, {}, {})
    for line in lines:
        record = json.loads(line)
        if "capabilities" in record:
            found.capabilities[record["backend"]] = record["capabilities"]
            continue
        row = found.outcomes.setdefault((record["case"], record["title"]), {})
        before = row.get(record["backend"], record["outcome"])
        row[record["backend"]] = min(before, record["outcome"], key=WORST.index)
        if record["outcome"] == "skipped":
            found.skips.setdefault(record["backend"], set()).add(record["reason"])
    return found


def page(found: Findings) -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *capability_table(found), *case_tables(found), *reasons(found), *not_yet()]) + "\n"


def capability_table(found: Findings) -> list[str]:
    names = next(iter(found.capabilities.values()), {})
    rows = [
        [f"`{name}`", *(_shown(found.capabilities[backend][name]) for backend in found.backends)]
        for name in names
        if name != "name"
    ]
    return ["## Capabilities", "", *_table(["capability", *found.backends], rows), ""]


def case_tables(found: Findings) -> list[str]:
    lines: list[str] = []
    for group, cases in itertools.groupby(sorted(found.outcomes), key=lambda case: case[0].split(".")[0]):
        rows = [
            [id, title, *(CELLS[found.outcomes[id, title].get(b, "")] for b in found.backends)] for id, title in cases
        ]
        lines += [f"## {TITLES.get(group, group)}", "", *_table(["case", "claim", *found.backends], rows), ""]
    return lines


def reasons(found: Findings) -> list[str]:
    lines = ["## What was not asked", ""]
    for backend, skips in sorted(found.skips.items()):
        lines += [f"### {backend}", "", *(f"- {reason}" for reason in sorted(skips)), ""]
    return lines if found.skips else []


def not_yet() -> list[str]:
    return ["## Not yet in the suite", "", *(f"- {cases}: {why}" for cases, why in NOT_YET.items())]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The table of guarantees, as Markdown.")
    parser.add_argument("results", nargs="+", type=Path, help="files written by pytest --mqkit-results")
    files = parser.parse_args().results
    print(page(read(line for file in files for line in file.read_text().splitlines())))  # noqa: T201  its purpose
