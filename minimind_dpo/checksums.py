"""What tells one file from another, and a whole one from a damaged one: times, SHA-256, CRC-32."""

from __future__ import annotations

import functools
import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from minimind_dpo.os_errors import explain, first_line

_T = TypeVar("_T")

_SETTLED: Final = 2.0
"""Seconds after which a further change shows in a file's times, however coarse their clock is."""

_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
)


def while_unchanged(find: Callable[[Path], _T]) -> Callable[[Path], _T]:
    """Let a function of one file read it once in this process; again where the file has changed.

    States, weights and data are files of gigabytes, and a run asks each of them several questions.
    What the function raises is not kept. What it returns is, and has to be left as it is.
    """
    known: dict[str, tuple[tuple[int, ...], _T]] = {}

    @functools.wraps(find)
    def remembered(path: Path) -> _T:
        try:
            stamp = _stamp(path)
        except OSError:
            return find(path)  # which raises it with a message of its own
        key = os.path.abspath(path)
        if key in known and known[key][0] == stamp:
            return known[key][1]
        answer = find(path)
        if time.time_ns() - max(stamp[:2]) > _SETTLED * 1e9:
            known[key] = stamp, answer
        return answer

    return remembered


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


@while_unchanged
def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def zip_fault(path: Path) -> str | None:
    """Why a zip archive is not whole; None where every record matches its checksum (CRC-32).

    torch's files are such archives, and torch itself never looks at the checksums.

    Raises:
        OSError: The file cannot be opened for a reason that is not its content.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except _ZIP_ERRORS as error:
        if explain(error) is not None:
            raise  # says nothing of what the file holds
        return f"it is cut short or no archive ({first_line(error)})"
    return None if bad is None else f"{bad} does not match its checksum"
