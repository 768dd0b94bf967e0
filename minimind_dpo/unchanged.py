"""What was found out about a file, for as long as the file stays as it was.

States, weights and data are files of gigabytes, and a run asks each of them several questions: it
would read them again for every one, on every rank.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

_T = TypeVar("_T")

_SETTLED: Final = 2.0
"""Seconds after which a further change shows in a file's times, however coarse their clock is."""


def while_unchanged(find: Callable[[Path], _T]) -> Callable[[Path], _T]:
    """Let a function of one file read it once in this process; again where the file has changed.

    What it raises is not kept. What it returns is, and has to be left as it is.
    """
    known: dict[str, tuple[tuple[int, ...], _T]] = {}

    @functools.wraps(find)
    def remembered(path: Path) -> _T:
        try:
            stamp = _stamp(path)
        except OSError:
            return find(path)  # which says it in its own words
        key = os.path.abspath(path)
        if key in known and known[key][0] == stamp:
            return known[key][1]
        found = find(path)
        if time.time_ns() - max(stamp[:2]) > _SETTLED * 1e9:
            known[key] = stamp, found
        return found

    return remembered


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
