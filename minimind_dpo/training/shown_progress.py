"""Progress of a long pass: a bar in a terminal, a line now and then in a log file."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

_log = logging.getLogger(__name__)

SECONDS_A_LINE = 15.0
"""Least time between two lines of a log file."""


@contextlib.contextmanager
def progress(
    title: str, total: int, noun: str = "pairs", *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show how far a pass is.

    Args:
        title: What is done.
        total: How many there are to do.
        noun: Of what.
        shown: Whether there is anybody to show it to.

    Yields:
        To be called with how many more are done.
    """
    console = Console()
    if not shown:
        yield lambda count: None
    elif console.is_terminal or console.is_jupyter:
        columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TextColumn(noun))
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(title, total, noun)


class _Lines:
    """Logs a line at most every `SECONDS_A_LINE`, and one at the end."""

    def __init__(self, title: str, total: int, noun: str) -> None:
        self._title, self._total, self._noun = title, total, noun
        self._start = self._last = time.monotonic()
        self._done = 0

    def __call__(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if self._done < self._total and now - self._last < SECONDS_A_LINE:
            return
        self._last = now
        seconds = now - self._start
        line = f"{self._title}: {self._done:,}/{self._total:,} {self._noun} in {seconds:.0f} s"
        if self._done < self._total:
            line += f", {seconds * (self._total - self._done) / self._done:.0f} s left"
        _log.info(line)
