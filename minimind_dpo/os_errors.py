"""What the operating system refused: the cause, where, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from typing import Final

_EDQUOT: Final = getattr(errno, "EDQUOT", errno.ENOSPC)  # Windows has no quotas under this name
_FULL: Final = (errno.ENOSPC, _EDQUOT, errno.EFBIG)
_OF_FILES: Final = (*_FULL, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EIO)
"""What is refused of a file, even where none is named."""
_NOT_ALLOWED: Final = "name another folder, or change who may write there"
_REFUSALS: Final = {
    errno.ENOSPC: ("the disk is full", "make room on it"),
    _EDQUOT: ("the disk quota is used up", "delete files of your own, or name another disk"),
    errno.EFBIG: ("a limit on file sizes is reached", "raise it (ulimit -f unlimited)"),
    errno.EACCES: ("permission is denied", _NOT_ALLOWED),
    errno.EPERM: ("permission is denied", _NOT_ALLOWED),
    errno.EROFS: ("the file system is read-only", "name a folder on another disk"),
    errno.EIO: ("the disk or device reports an error", "have it checked, or name another one"),
    errno.EMFILE: (
        "this process has too many files open",
        "raise the limit (ulimit -n 4096), or lower data.num_workers",
    ),
    errno.ENFILE: ("the machine has too many files open", "end other processes"),
    errno.EISDIR: ("a folder is there", "move it elsewhere"),
    errno.ENOTDIR: ("a file is there where a folder has to be", "move it elsewhere"),
    errno.EEXIST: ("something of another kind is there", "move it elsewhere"),
    errno.ENAMETOOLONG: (
        "the name is too long (most file systems take 255 bytes; a Chinese character is 3)",
        "shorten it",
    ),
}
"""Errors that the user can do something about: the cause, and what to do."""
_NO_HOME: Final = "Could not determine home directory"
"""What pathlib says of `~name`."""


def explain(error: BaseException) -> str | None:
    """A sentence for what the operating system refused: what, where, what to do.

    Returns:
        None where no such refusal is the error or its cause.
    """
    for cause in causes(error):
        if isinstance(cause, RuntimeError) and str(cause).startswith(_NO_HOME):
            return "a path begins with ~ and no user of this machine. To go on, write it in full"
        number = number_of(cause)
        if number in _REFUSALS:
            reason, remedy = _REFUSALS[number]
            place = getattr(cause, "filename", None)
            if place is None and number not in _OF_FILES:
                continue
            where = "a file" if place is None else os.fsdecode(place)
            return f"{where} cannot be opened or written: {reason}. To go on, {remedy}"
    return None


def refused(error: BaseException) -> bool:
    """Whether an error itself, whatever caused it, is such a refusal."""
    return number_of(error) in _REFUSALS


def is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, is a disk or a quota without room."""
    return any(number_of(cause) in _FULL for cause in causes(error))


def number_of(error: BaseException) -> int | None:
    """The errno of an error; libraries written in Rust (safetensors) name it in the text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    if "recvfds" in frames[-1:]:  # no room for the file that a loading process hands over
        return errno.EMFILE
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match.group(1)) if match else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on; a chain that leads back to itself ends there."""
    met: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in met:
        met.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
