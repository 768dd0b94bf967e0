"""One process at a time in a folder: a lock that its holder's death gives back, whatever ended it.

The operating system keeps the lock on `<folder>/.lock`; the file names the process that holds it.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import socket
from pathlib import Path
from typing import IO, Final

from minimind_dpo.disk import lock
from minimind_dpo.options.problem import ConfigError, Problem

log = logging.getLogger(__name__)

LOCK_FILE: Final = ".lock"
_held: Final[set[Path]] = set()
"""Folders of this process: to the operating system, all of its locks are one."""


class FolderLock:
    """Held from `take` until the block of `with`, or the process, ends."""

    def __init__(self) -> None:
        self._file: IO[str] | None = None
        self._folder = Path()
        self._key = ""

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> bool:
        """Whether this process has taken it."""
        return self._file is not None

    def take(self, folder: Path, key: str) -> None:
        """Take the lock of a folder that exists; nothing where this one is held already.

        Args:
            folder: What to write into.
            key: Configuration key that names the folder, for the message.

        Raises:
            ConfigError: Another run holds it, in this process or another; says which.
        """
        if self.held:
            return
        # NOTE: looked at before the file is opened: closing it would free the lock of the other.
        if folder.resolve() in _held:
            raise _in_use(folder, key, "this very process")
        self._file, self._folder, self._key = _locked(folder, key), folder.resolve(), key
        _held.add(self._folder)

    def keep(self) -> None:
        """Take it anew where its file was deleted, which would let a second run in; a cheap look.

        Raises:
            ConfigError: A second run is in already.
        """
        if self._file is None:
            return
        path = self._folder / LOCK_FILE
        try:
            same = path.stat().st_ino == os.fstat(self._file.fileno()).st_ino
        except FileNotFoundError:
            same = False
        if not same and self._folder.is_dir():
            log.warning(f"{path} was deleted: it keeps a second run out of the folder")
            deleted, self._file = self._file, _locked(self._folder, self._key)
            deleted.close()

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _held.discard(self._folder)


def _locked(folder: Path, key: str) -> IO[str]:
    """The folder's lock file, locked and with this process's name in it.

    Raises:
        ConfigError: Another process holds it.
    """
    file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    try:
        if not lock(file):
            holder = _holder(file)
            file.close()
            raise _in_use(folder, key, holder)
    except OSError as error:
        log.warning(f"{folder} cannot be locked ({error}): nothing keeps a second run out of it")
    file.truncate(0)
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": since}, file)
    file.flush()
    return file


def _in_use(folder: Path, key: str, holder: str) -> ConfigError:
    why = f"is in use by {holder}; two runs in one folder would destroy each other"
    fix = "Wait for it, end it, or name another folder."
    return ConfigError([Problem(key, why, fix, str(folder))])


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        said = json.load(file)
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
