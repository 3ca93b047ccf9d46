"""How far the demo is: a Rich bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

try:
    from rich import progress as rich
except ImportError:
    rich = None  # type: ignore[assignment]

Tell = Callable[[str, int], None]
STEP = 5_000  # plain text: one line per so many


@contextmanager
def progress(total: int) -> Iterator[Tell]:
    """A function to be told what is being done and how much of `total` is reached."""
    if rich is not None and sys.stdout.isatty():
        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.MofNCompleteColumn())
        with rich.Progress(*columns, rich.TimeElapsedColumn()) as bar:
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
