"""Stopping on a signal without losing work.

A handler sets a flag. Ranks agree on it at the end of a micro-batch (a signal may reach one of
them alone), all save together, and all raise `Stopped`. Nothing that talks to other ranks runs
inside a handler: that is what hangs.

An optimizer step may take minutes. One process therefore gives up the step in progress when
`grace` seconds are over: until the optimizer moves the weights, the state of the step before is
all there, and a resumed run repeats the step. What costs nothing to give up (validation, sampled
answers) is given up at once. Several ranks look at the clock between micro-batches only: one that
left a collective in flight would leave the others hanging in it.

SIGTERM, SIGUSR1   exit 143: what schedulers send, and their warning before it
SIGINT (Ctrl-C)    exit 130; a second one ends the process at once, by that signal
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

log = logging.getLogger(__name__)

_HANDLED = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT")


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

    Args:
        grace: `guard.stop_grace`: seconds that a step in progress is given to end.

    Attributes:
        signum: The signal that came; 0 for none.
        patient: Whether somebody will look at the flag soon. Where nobody does (before training
            starts, after it has ended) the handler raises `Stopped` itself.
        at_once: Called before the process ends on a second Ctrl-C.
        step: Optimizer steps that are done.
        saved: The newest state that a resumed run can start from.
        saved_step: The optimizer steps it holds.
        speaks: Whether this process tells people; one of several ranks does.
    """

    def __init__(self, grace: float = 5.0) -> None:
        self.grace = grace
        self.signum = 0
        self.patient = False
        self.at_once: Callable[[], None] = lambda: None
        self.step = self.saved_step = 0
        self.saved: Path | None = None
        self.speaks = True
        self._asked = 0.0
        self._interrupts = 0
        self._given_up_after: float | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over the signals; again after Lightning has put its own handlers there."""
        if threading.current_thread() is not threading.main_thread():
            return
        handlers = {**dict.fromkeys(_HANDLED, self._handle), "SIGALRM": self._look}
        for name, handler in handlers.items():
            number = getattr(signal, name, None)  # Windows lacks some
            if number is not None:
                before = signal.signal(number, handler)
                self._before.setdefault(number, before)

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        self.forbid()
        for number, handler in self._before.items():
            if handler is not None:
                signal.signal(number, handler)
        self._before.clear()

    def note_saved(self, path: Path, step: int) -> None:
        """A state of the run is on disk."""
        self.saved, self.saved_step = path, step
        self.step = max(self.step, step)

    def allow(self, grace: float) -> None:
        """From here on a stop may raise `Stopped`, `grace` seconds after it was asked for.

        What runs until `forbid` can be given up at any line of Python.
        """
        self._given_up_after = grace
        self._look()

    def forbid(self) -> None:
        """From here on a stop waits again."""
        self._given_up_after = None
        if hasattr(signal, "setitimer") and self._process == os.getpid() and self.signum:
            signal.setitimer(signal.ITIMER_REAL, 0)

    @contextmanager
    def giving_up(self) -> Iterator[None]:
        """Within this, a stop raises `Stopped` at once: nothing is lost by it."""
        self.allow(0.0)
        try:
            yield
        finally:
            self.forbid()

    def agreed(self, trainer: L.Trainer, after: float = 0.0) -> bool:
        """Whether any rank was asked to stop, `after` seconds ago or more.

        To be called by all ranks at the same point.
        """
        asked = bool(self.signum) and time.monotonic() - self._asked >= after
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

    def kept(self) -> str:
        """What is saved and what is not, as a sentence."""
        if self.step == 0:
            return "Nothing was trained yet, so there is nothing to resume"
        if self.saved is None:
            return f"No state is saved: the {self.step} steps that were trained are lost"
        if self.saved_step == self.step:
            return f"Everything up to step {self.step} is saved ({self.saved.name})"
        return f"Nothing newer than {self.saved.name} was saved; training was at step {self.step}"

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a process that loads data, which inherited this and ends with the run
        self._interrupts += signum == signal.SIGINT
        if self._interrupts > 1:
            self._end()
        if self.signum:
            return
        self.signum, self._asked = signum, time.monotonic()
        if not self.patient:
            raise Stopped(signum)
        again = "; press Ctrl-C again to end at once" if signum == signal.SIGINT else ""
        self._say(f"{signal.Signals(signum).name}: finishing this step, then saving{again}")
        self._look()

    def _look(self, *_: Any) -> None:
        """Give up what may be given up now, or look again when it may be."""
        if not self.signum or self._given_up_after is None:
            return
        left = self._asked + self._given_up_after - time.monotonic()
        if left <= 0:
            self._given_up_after = None
            raise Stopped(self.signum)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, left)

    def _end(self) -> None:
        """End this process as a shell expects of Ctrl-C: by the signal itself."""
        self.at_once()
        self._say(f"Ended at once. {self.kept()}.")
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(130)

    def _say(self, text: str) -> None:
        # NOTE: not print, which a handler may have interrupted in the middle.
        if self.speaks:
            os.write(2, f"\n{text}\n".encode())


def let_signals_in(loss: torch.Tensor) -> None:
    """Give Python a moment between the layers of the backward pass of `loss`.

    Handlers of signals run between lines of Python. A backward pass is one call, so on a CPU it
    is seconds to minutes without one: hooks along a path through its graph make such moments.
    """
    node = loss.grad_fn
    while node is not None:
        node.register_prehook(_pause)
        # The child made last is the one nearest to the loss; leaves are no part of the chain.
        children = [n for n, _ in node.next_functions if n and "AccumulateGrad" not in n.name()]
        node = max(children, key=lambda child: child._sequence_nr(), default=None)


def _pause(gradients: Any) -> None:
    """Nothing: to have been called is the moment."""


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
