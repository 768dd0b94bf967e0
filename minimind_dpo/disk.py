"""Files that a crash, a full disk or a second process cannot leave half written.

Written under a temporary name beside the target -> fsync -> rename -> fsync the folder.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from minimind_dpo.os_errors import number_of, refused

Rows = list[dict[str, str]]

_LOCK: Final = "lock"
_ASIDE: Final = ".old"
_WORKSPACE: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_TAKEN: Final = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_workspaces: Final[set[Path]] = set()
"""Those of this process: to the operating system, all locks of one process are one."""


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on disk."""
    if path.is_dir():
        if os.name == "nt":
            return  # Windows does not open folders; its journal holds the rename.
        descriptor = os.open(path, os.O_RDONLY)
    else:
        # NOTE: Windows refuses fsync on a file opened for reading only.
        descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields:
        The temporary name to write to. It takes the place of `target` at the end of the block;
        where the block raises, it is deleted and `target` stays as it is.

    Raises:
        OSError: Naming `target`.
    """
    with workspace(target) as space:
        yield space / target.name
        replace(space / target.name, target)


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none, or it is broken."""
    try:  # other things than files may never end
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; empty where it holds none."""
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a JSON value a line, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[Any]:
    """The JSON values of a file that has one a line.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds something else; with its name and the line.
    """
    try:
        return [value for _, value in parse_lines(path.read_text(encoding="utf-8"))]
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def parse_lines(text: str) -> Iterator[tuple[int, Any]]:
    """JSON values of a text that has one a line, each with the number of its line from 1.

    Lines end at newlines alone: `str.splitlines` would also cut at U+2028 inside a JSON string.

    Raises:
        ValueError: A line is no JSON; blank ones are left out.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is no JSON: {error}") from None


def read_rows(path: Path) -> tuple[list[str], Rows]:
    """Header and rows of a CSV file of curves; nothing where there is none.

    A row that a crash cut short is left out.
    """
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or [])
        rows = [row for row in reader if None not in row and None not in row.values()]
    return header, rows


@contextlib.contextmanager
def workspace(target: Path) -> Iterator[Path]:
    """A folder beside `target` to make in what takes its place; deleted at the end.

    A process holds a lock on each workspace of its own, so those of processes that died are told
    from those in use, and deleted.

    Yields:
        The folder, empty but for the file of the lock.

    Raises:
        OSError: Naming `target`, where the system refuses to write into the folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_dead(target.parent)
    with _naming(target):
        space, file = _locked_workspace(target)
        try:
            yield space
        finally:
            file.close()
            shutil.rmtree(space, ignore_errors=True)
            _workspaces.discard(space)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Let what the system refuses name a place that the user knows."""
    try:
        yield
    except Exception as error:
        place, number = getattr(error, "filename", None), number_of(error)
        inside = isinstance(place, str) and any(map(_WORKSPACE.fullmatch, Path(place).parts))
        if inside and isinstance(error, OSError):
            error.filename, error.filename2 = str(target), None
        elif place is None and number is not None and refused(error):
            raise OSError(number, os.strerror(number), str(target)) from error
        raise


def _locked_workspace(target: Path) -> tuple[Path, IO[bytes]]:
    while True:
        space = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp").absolute()
        _workspaces.add(space)
        space.mkdir()
        with contextlib.suppress(FileNotFoundError):
            file = (space / _LOCK).open("xb")
            with contextlib.suppress(OSError):  # a file system without locks: nothing is deleted
                lock(file)
            # Another process may have taken the folder for a dead one before the lock was held.
            if (space / _LOCK).exists():
                return space, file
            file.close()
        _workspaces.discard(space)


def remove_dead(folder: Path) -> None:
    """Delete the workspaces in a folder whose processes died."""
    for space in folder.glob(".*.tmp"):
        mine = space.absolute() in _workspaces
        if mine or not _WORKSPACE.fullmatch(space.name) or not space.is_dir():
            continue
        with contextlib.suppress(OSError):
            if not (space / _LOCK).exists():
                space.rmdir()  # which fails where it holds anything
                continue
            with (space / _LOCK).open("r+b") as file:
                if lock(file):
                    _put_back(space)
                    shutil.rmtree(space, ignore_errors=True)


def _put_back(space: Path) -> None:
    """Give a folder its place again where the process died between the two renames."""
    for aside in space.glob(f"*{_ASIDE}"):
        target = space.parent / aside.name.removesuffix(_ASIDE)
        if not target.exists():
            os.replace(aside, target)


def replace(made: Path, target: Path) -> None:
    """Put a file or folder made in a `workspace` into the place of `target`, as a whole."""
    for path in (*made.rglob("*"), made):
        if path.is_file() or path.is_dir():
            _use_default_mode(path)
            sync(path)
    if target.is_dir():
        # A folder that holds anything cannot be replaced in one step; the old one steps aside.
        aside = made.with_name(f"{target.name}{_ASIDE}")
        os.replace(target, aside)
        try:
            os.replace(made, target)
        except BaseException:
            os.replace(aside, target)
            raise
    else:
        os.replace(made, target)
    sync(target.parent)


def _use_default_mode(path: Path) -> None:
    """Give a file or folder the permissions of a plainly created one: some libraries give 0600."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def lock(file: IO[Any]) -> bool:
    """Lock an open file for this process until it is closed, without waiting.

    Returns:
        False where another process holds it.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(1 << 30)  # a byte behind the content, which others have to be able to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # NOTE: not flock, which processes that load data would inherit and hold on to.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True
