"""Checkpoints on disk that a crash, a full disk or a bad sector cannot turn into lost work.

save    temporary file beside the target -> fsync -> read back against its checksums -> rename
        over the target -> fsync the folder
load    checksums first, then torch's weights-only loader: nothing in a file can run code

A state on a GPU is copied and written by a thread (`background_write`), with the same guarantees.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.plugins import CheckpointIO

from minimind_dpo.checksums import zip_fault
from minimind_dpo.disk import replacing, sync
from minimind_dpo.os_errors import first_line, is_full
from minimind_dpo.training.resume.background_write import (
    BackgroundWriter,
    is_on_cuda,
    set_aside,
    tensors_of,
)
from minimind_dpo.training.resume.content import CONTENT, HEADER, Header, content_digest

log = logging.getLogger(__name__)

_STEP: Final = re.compile(r"step-(\d+)\.ckpt")
_SET_ASIDE: Final = "superseded"


class DamagedCheckpointError(ValueError):
    """A checkpoint that is not what was written, or not a checkpoint of this program."""


class CheckpointSaveError(OSError):
    """A checkpoint could not be written; the ones before it are as they were."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's storage plugin: a file under its own name is always whole.

    Args:
        background: Write in a thread; None where the state is on a GPU. Only one write at a time.

    Attributes:
        writer: The thread and its jobs.
    """

    def __init__(self, background: bool | None = None) -> None:
        self.background = background
        self.writer = BackgroundWriter()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, or leave `path` as it is.

        Raises:
            CheckpointSaveError: Disk full, not writable, or not readable as it was written; of a
                write in a thread, at the next step, save or end.
        """
        self.writer.wait()
        target = Path(path)
        if not (is_on_cuda(checkpoint) if self.background is None else self.background):
            self._write(checkpoint, target)
            return
        copied, wait_for_copy = set_aside(checkpoint)

        def write() -> None:
            wait_for_copy()
            self._write(copied, target)

        self.writer.do(write)

    def _write(self, checkpoint: dict[str, Any], target: Path) -> None:
        started = time.perf_counter()
        target.parent.mkdir(parents=True, exist_ok=True)
        if HEADER in checkpoint:
            header = {**checkpoint[HEADER], CONTENT: content_digest(checkpoint)}
            checkpoint = {**checkpoint, HEADER: header}
        try:
            with replacing(target) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                sync(temporary)
                verify(temporary)
        except (OSError, RuntimeError, DamagedCheckpointError) as error:
            raise CheckpointSaveError(_why_not_saved(error, target, checkpoint)) from error
        taken = time.perf_counter() - started
        size = target.stat().st_size / 1e6
        level = logging.INFO if taken >= 1 else logging.DEBUG
        log.log(level, f"Saved {target.name}: {size:,.1f} MB in {taken:.2f} s")

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; weights-only, whatever is asked for.

        Raises:
            DamagedCheckpointError: Naming the file and what is wrong with it.
        """
        self.writer.wait()
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint, if it is there, once those saved before are proved."""
        self.writer.then(lambda: Path(path).unlink(missing_ok=True))

    def teardown(self) -> None:
        """Wait for what is being written; at the end of a run, and when it stops or fails."""
        self.writer.wait()


def writer_of(trainer: L.Trainer) -> BackgroundWriter:
    """What a run's states are written by; one without jobs where another plugin saves them."""
    io = trainer.strategy.checkpoint_io
    return io.writer if isinstance(io, AtomicCheckpointIO) else BackgroundWriter()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Check and load one checkpoint onto the CPU.

    Raises:
        DamagedCheckpointError: It is empty, cut short, altered, holds objects that could run code,
            or is no training state.
    """
    verify(path)
    try:
        # NOTE: memory-mapped tensors would change under us when the file is replaced.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is not torch's raises nearly anything
        raise DamagedCheckpointError(
            f"{path} cannot be read as a checkpoint: {_why_unread(error)}"
        ) from error
    if not isinstance(loaded, dict) or not {"state_dict", "loops"} <= loaded.keys():
        raise DamagedCheckpointError(
            f"{path} holds no training state: resume needs a file of a run's checkpoints folder. "
            "Weights alone are named with model.path"
        )
    _check_content(path, loaded)
    return loaded


def _check_content(path: Path, checkpoint: dict[str, Any]) -> None:
    """Take the digest out of the header, and refuse a file whose entries are not those saved.

    Lightning restores what it finds: without moments the optimizer would begin with zeros.

    Raises:
        DamagedCheckpointError: An entry is missing, or has another value or shape.
    """
    header = checkpoint.get(HEADER)
    if isinstance(header, dict) and header.pop(CONTENT, None) != content_digest(checkpoint):
        raise DamagedCheckpointError(f"{path} was altered: its entries are not those saved in it")


def read_header(path: Path) -> Header:
    """Check a whole checkpoint against its checksums, and read no more than its header.

    Raises:
        DamagedCheckpointError: As `read_checkpoint`.
    """
    verify(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        header = Header.of(loaded)
    except Exception as error:
        raise DamagedCheckpointError(
            f"{path} is no checkpoint of this program: {_why_unread(error)}. Resume needs a file "
            "of a run's checkpoints folder; weights alone are named with model.path"
        ) from error
    _check_content(path, loaded)
    return header


def _why_unread(error: Exception) -> str:
    """Without torch's advice to load it in a way that runs its code."""
    if "weights_only" in str(error):
        return "it holds Python objects, which are not loaded because that can run code"
    if isinstance(error, KeyError):
        return f"it has no entry {error}"
    return first_line(error)


def verify(path: Path) -> None:
    """Compare every record of a checkpoint with its checksum.

    Raises:
        DamagedCheckpointError: Naming the file and what is wrong with it.
    """
    try:
        if path.stat().st_size == 0:
            raise DamagedCheckpointError(f"{path} is empty (0 bytes)")
        fault = zip_fault(path)
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if fault is not None:
        raise DamagedCheckpointError(f"{path} is damaged: {fault}")


def step_file(folder: Path, step: int) -> Path:
    """Where the state after optimizer step `step` is kept."""
    return folder / f"step-{step:08d}.ckpt"


def step_files(folder: Path) -> list[Path]:
    """Resume states of a folder, newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The optimizer step that a `step-*.ckpt` was written after."""
    match = _STEP.fullmatch(path.name)
    assert match is not None, path
    return int(match.group(1))


def newest_valid(folder: Path) -> tuple[Path, Header] | None:
    """The newest state of a folder that is whole; damaged ones are named in the log.

    Raises:
        DamagedCheckpointError: There are states, and none is whole.
    """
    damaged = []
    for path in step_files(folder):
        try:
            return path, read_header(path)
        except DamagedCheckpointError as error:
            damaged.append(str(error))
            log.warning(f"{error}. Trying the one before")
    if damaged:
        raise DamagedCheckpointError(
            f"no checkpoint in {folder} is whole:\n  " + "\n  ".join(damaged) + "\nStart anew with "
            "another run_dir, or name an older copy with resume=PATH"
        )
    return None


def set_aside_newer(folder: Path, step: int) -> None:
    """Move states after `step`, which a resumed run writes anew, out of the way."""
    newer = [path for path in step_files(folder) if step_of(path) > step]
    for path in newer:
        aside = folder / _SET_ASIDE
        aside.mkdir(exist_ok=True)
        os.replace(path, aside / path.name)
        log.info(f"{path.name} is from after step {step}: moved to {aside}")


def _why_not_saved(error: Exception, target: Path, checkpoint: dict[str, Any]) -> str:
    needed = sum(tensor.nbytes for tensor in tensors_of(checkpoint)) / 1e6
    free = shutil.disk_usage(target.parent).free / 1e6
    full = is_full(error) or free < needed
    reason = "the disk is full, or a limit on file sizes is reached" if full else first_line(error)
    kept = ", ".join(path.name for path in step_files(target.parent)) or "none"
    return (
        f"{target} could not be saved: {reason} (about {needed:,.0f} MB needed, {free:,.0f} MB "
        f"free). Earlier states are as they were ({kept}): make room, then continue with "
        f"resume=auto run_dir={target.parent.parent}"
    )
