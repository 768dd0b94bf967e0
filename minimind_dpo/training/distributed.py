"""Several processes as one run: they fail together and leave nobody behind.

Lightning starts the ranks of a machine (or torchrun or SLURM do) and kills the first one when
another dies, so that the last words are rarely those of the rank that failed first. Here the first
rank to fail claims a file in the run's folder and prints its cause; the others say whose fault it
was. The process that started the others waits for them, and ends them where they do not end.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from datetime import timedelta
from inspect import signature
from pathlib import Path
from typing import Final

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy, StrategyRegistry
from torch.nn.parallel import DistributedDataParallel

from minimind_dpo import launch
from minimind_dpo.exit_codes import FAILED, INTERRUPTED, TERMINATED, WRONG_INPUT
from minimind_dpo.training.lightning_seams import take_started_ranks

log = logging.getLogger(__name__)

FIRST_FAILURE: Final = ".first-failure"
_GRACE: Final = 10.0
_BUFFERS: Final = ("forward_sync_buffers", "broadcast_buffers")  # the newer name first
_DDP: Final = {
    # Gradients are views of what is reduced: one copy of them less, in memory and time.
    "gradient_as_bucket_view": True,
    # Rotary tables and masks are the same on all ranks, and nothing trains them.
    next(name for name in _BUFFERS if name in signature(DistributedDataParallel).parameters): False,
    # NOTE: a rank without pairs uses each weight once, the others a tied embedding twice.
    "static_graph": False,
}


_STUCK: Final = (
    ", with which NCCL ends a process that has waited {:g} s (guard.rank_timeout) for another "
    "rank: one is stuck or very slow, and the line of NCCL's watchdog above names what it waited in"
)


def choose_device(devices: int | list[int] | None) -> None:
    """Make this rank's CUDA device the current one, as Lightning does later; nothing without CUDA.

    Objects that ranks exchange go through the current device.

    Args:
        devices: From `parse_devices`: which, or how many, or None for all.
    """
    count = torch.cuda.device_count()
    if count:
        listed = devices if isinstance(devices, list) else list(range(count))
        # A launcher may show each rank its own device alone.
        torch.cuda.set_device(listed[launch.local_rank() % len(listed)])


def make_strategy(name: str, world_size: int, timeout: float) -> str | Strategy:
    """Lightning's strategy of that name, whose ranks wait for each other for `timeout` seconds."""
    if name == "auto" and world_size > 1:
        name = "ddp"
    registered = StrategyRegistry.get(name) if name in StrategyRegistry else None
    if not isinstance(registered, DDPStrategy):
        return name
    options = {**_DDP, **StrategyRegistry[name]["init_params"]}
    return DDPStrategy(timeout=timedelta(seconds=timeout), **options)


class RankGuard:
    """Watches the other processes of a run from this one.

    Args:
        timeout: `guard.rank_timeout`, for messages.

    Attributes:
        folder: The run's, once it is known; where the first failure is claimed.
    """

    def __init__(self, timeout: float = 0.0) -> None:
        self.timeout = timeout
        self.folder: Path | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._ending = threading.Event()

    def watch_parent(self) -> None:
        """End this rank when the process that started it is gone (Lightning's launcher only)."""
        if launch.launched_by_rank():
            launch.watch_parent(os.getppid(), lambda: os._exit(FAILED))
        launch.announce_launcher()

    def watch_children(self, trainer: L.Trainer) -> None:
        """Look after the ranks that Lightning's launcher will start, in its place."""
        if trainer.strategy.launcher is None:
            return

        def look() -> None:
            while not self._ending.is_set():
                self._children += take_started_ranks(trainer)
                if any(child.poll() for child in self._children):
                    self._give_up()
                    return
                time.sleep(0.1)

        threading.Thread(target=look, daemon=True, name="watch-ranks").start()

    def report(self, error: BaseException, text: str | None = None) -> None:
        """Print the cause, if this rank is the first to fail; else whose fault it was.

        Args:
            error: What ended this rank.
            text: What to say; the traceback where None.
        """
        rank = launch.rank()
        claimed = self._claim(rank)
        lost = self._lost_children() if claimed is None else ""
        if claimed is not None and claimed != rank:
            print(f"Rank {rank} ends: rank {claimed} failed first, see above", file=sys.stderr)
            return
        if lost:
            print(f"Error: {lost}", file=sys.stderr)
        elif "imed out" in str(error) or "timeout" in str(error).lower():
            print(
                f"Error: rank {rank} waited {self.timeout:g} s for another rank "
                "(guard.rank_timeout), which is stuck or very slow",
                file=sys.stderr,
            )
        print(text or "".join(traceback.format_exception(error)), file=sys.stderr, flush=True)

    def finish(self, failed: bool) -> None:
        """Wait for the ranks that this process started, then end those that do not end."""
        self._ending.set()
        deadline = time.monotonic() + (3.0 if failed else _GRACE)
        while time.monotonic() < deadline and any(c.poll() is None for c in self._children):
            time.sleep(0.05)
        self.kill()

    def kill(self) -> None:
        """End the ranks that this process started, at once."""
        for child in self._children:
            if child.poll() is None:
                child.kill()

    def _claim(self, rank: int) -> int | None:
        """The rank that failed first, where that is known already; None if this one is it."""
        if self.folder is None or not self.folder.is_dir():
            return None
        path = self.folder / FIRST_FAILURE
        try:
            with path.open("x") as file:
                file.write(str(rank))
        except FileExistsError:
            return int(path.read_text() or "0")
        except OSError:
            return None
        return None

    def _lost_children(self) -> str:
        """What became of ranks that ended without a word."""
        for _ in range(10):
            codes = {i: child.poll() for i, child in enumerate(self._children, start=1)}
            lost = [(rank, -code) for rank, code in codes.items() if code is not None and code < 0]
            if lost:
                rank, number = lost[0]
                name = signal.Signals(number).name
                stuck = name == "SIGABRT" and torch.cuda.is_available()
                why = _STUCK.format(self.timeout) if stuck else ""
                return f"rank {rank} disappeared: it was ended by {name}{why}"
            time.sleep(0.05 if self._children else 0)
        return ""

    def _give_up(self) -> None:
        """A rank has ended: this process learns of it by itself, or is ended here."""
        if self._ending.wait(_GRACE):
            return
        codes = [child.poll() for child in self._children]
        code = next(code for code in codes if code)
        lost = self._lost_children()
        if lost:
            print(f"Error: {lost}", file=sys.stderr, flush=True)
        self.kill()
        os._exit(code if code in (WRONG_INPUT, INTERRUPTED, TERMINATED) else FAILED)


def forget_failure(folder: Path) -> None:
    """Let a run that goes on fail anew."""
    (folder / FIRST_FAILURE).unlink(missing_ok=True)
