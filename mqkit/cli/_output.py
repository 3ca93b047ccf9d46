"""What a command prints: tables and sentences for people, JSON for programs, remarks on stderr."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mqkit.message import Message

PIPED = 10_000  # columns of a table that goes into a pipe: nothing is cut there


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """
    Args:
        json: JSON on stdout instead of text.
        debug: Tracebacks of errors.
    """

    json: bool = False
    debug: bool = False

    def document(self, value: Any) -> None:
        """One JSON value on one line, whatever `json` says."""
        print(json.dumps(value), flush=True)  # ASCII only, so no body can speak to the terminal

    def say(self, text: str) -> None:
        """A line on stdout."""
        print(printable(text), flush=True)

    def note(self, text: str) -> None:
        """A remark on stderr, which no program reads as the result."""
        print("\n".join(map(printable, f"mqkit: {text}".split("\n"))), file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        console().print(table_of(columns, rows))


def console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, highlight=False, width=None if stream.isatty() else PIPED)


def table_of(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """Numbers to the right; the last column is the one that is cut in a narrow terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
        last = index == len(columns) - 1
        table.add_column(
            column, justify="right" if numbers else "left", no_wrap=True, overflow="ellipsis" if last else "fold"
        )
    for row in rows:
        table.add_row(*(Text(printable("" if cell is None else str(cell))) for cell in row))
    return table


def printable(text: str) -> str:
    """Bodies, names and reasons come from strangers: control and direction characters are shown, never sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def body_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return repr(body)


def record_of(message: Message) -> dict[str, Any]:
    """The JSON form of a message, which `publish --messages` reads again."""
    try:
        body, encoding = message.body.decode(), "utf-8"
    except UnicodeDecodeError:
        body, encoding = base64.b64encode(message.body).decode(), "base64"
    return {
        "id": message.id,
        "key": message.key,
        "headers": dict(message.headers),
        "type": message.type,
        "content_type": message.content_type,
        "correlation_id": message.correlation_id,
        "causation_id": message.causation_id,
        "sent_at": message.sent_at,
        "body": body,
        "encoding": encoding,
    }
