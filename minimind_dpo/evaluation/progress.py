"""Progress bars of the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import MofNCompleteColumn, Progress


@contextmanager
def shown(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; gives the function that advances it."""
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """No bar."""
    yield lambda count: None
