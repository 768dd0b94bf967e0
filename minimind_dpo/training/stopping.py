"""Stopping on a signal without losing work.

A handler only sets a flag. Ranks agree on it at the end of an optimizer step (a signal may reach
one of them alone), all save together, and all raise `Stopped`. Nothing that talks to other ranks
runs inside a handler: that is what hangs.

SIGTERM, SIGUSR1   exit 143: what schedulers send, and their warning before it
SIGINT (Ctrl-C)    exit 130; a second one ends at once
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning as L

log = logging.getLogger(__name__)


class Stopped(Exception):  # noqa: N818 - not an error
    """The run was asked to stop and has saved what there was to save.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for everything else."""
        return 130 if self.signum == signal.SIGINT else 143


class StopRequest:
    """What the signal handlers leave for the training loop.

    Attributes:
        signum: The signal that came; 0 for none.
        patient: Whether somebody will look at the flag soon. Where nobody does (before training
            starts, after it has ended) the handler raises `Stopped` itself.
        at_once: Called before the process ends on a second Ctrl-C.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.patient = False
        self.at_once: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; again after Lightning has put its own handlers there."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"):
            number = getattr(signal, name, None)  # Windows lacks some
            if number is not None:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        self._before.clear()

    def agreed(self, trainer: L.Trainer) -> bool:
        """Whether any rank was asked to stop; to be called by all of them at the same point."""
        asked = bool(self.signum)
        if trainer.world_size == 1:
            return asked
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def stopped(self, trainer: L.Trainer) -> Stopped:
        """The exception that ends all ranks, with the same exit code on each."""
        # A rank that got no signal itself answers 143 unless another one got Ctrl-C.
        interrupted = self.signum == signal.SIGINT
        if trainer.world_size > 1:
            interrupted = trainer.strategy.reduce_boolean_decision(interrupted, all=False)
        return Stopped(signal.SIGINT if interrupted else self.signum or signal.SIGTERM)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.signum == signal.SIGINT:
            self.at_once()
            os._exit(130)
        first = not self.signum
        self.signum = self.signum or signum
        if first and not self.patient:
            raise Stopped(signum)


def requeue(signum: int) -> None:
    """Under SLURM, queue this job again where SIGUSR1 said that its time is nearly over.

    A job that was cancelled (SIGTERM) stays so, and one that is preempted is requeued by SLURM.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or signum != getattr(signal, "SIGUSR1", None):
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else job
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    except OSError as error:
        log.warning(f"SLURM job {name} could not be queued again: {error}")
        return
    if done.returncode:
        log.warning(f"SLURM job {name} could not be queued again: {done.stderr.strip()}")
    else:
        log.info(f"SLURM job {name} is queued again and will go on from here")
