"""How far the demo is: a Rich bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

try:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
except ImportError:
    RICH = False
else:
    RICH = True

Tell = Callable[[str, int], None]
STEP = 5_000  # plain text: one line per so many


@contextmanager
def progress(total: int) -> Iterator[Tell]:
    """A function to be told what is being done and how much of `total` is reached."""
    if RICH and sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns) as bar:
            task = bar.add_task("starting", total=total)
            yield lambda doing, reached: bar.update(task, description=doing, completed=reached)
    else:
        yield _plain(total)


def _plain(total: int) -> Tell:
    shown: set[tuple[str, int]] = set()

    def tell(doing: str, reached: int) -> None:
        step = (doing, reached // STEP)
        if step not in shown:
            shown.add(step)
            print(f"{doing}: {reached:,} of {total:,}", flush=True)

    return tell
