"""Run something to its end, whatever happens, and turn that into an exit code.

The last line of a run that was stopped says what is saved. A failure is told in a sentence where
its cause is known; else a line says where the run's state is, and the traceback follows. No process
outlives the run.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from minimind_dpo import launch, os_errors
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.exit_codes import DONE, FAILED, INTERRUPTED, WRONG_INPUT
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.training.agreement import RanksDisagreeError
from minimind_dpo.training.distributed import RankGuard
from minimind_dpo.training.nan_guard import NotFiniteError
from minimind_dpo.training.resume.checkpoint_io import CheckpointSaveError, DamagedCheckpointError
from minimind_dpo.training.resume.position import ResumeMismatchError
from minimind_dpo.training.signals import Stopped, StopRequest

log = logging.getLogger(__name__)

_WRONG_INPUT = (
    CheckpointError,
    ConfigError,
    DamagedCheckpointError,
    DataError,
    RanksDisagreeError,
    ResumeMismatchError,
)
_SENTENCES = (CheckpointSaveError, NotFiniteError)


def supervised(
    run: Callable[[StopRequest, RankGuard], Any],
    rank_timeout: float,
    explain: Callable[[Exception], str | None] = lambda error: None,
) -> int:
    """Run, on any number of ranks, and say how it ended.

    Args:
        run: Gets what signals leave for it, and the watch over the other ranks.
        rank_timeout: `guard.rank_timeout`.
        explain: A sentence for a failure that has a known cause; None for a traceback.

    Returns:
        The exit code.
    """
    stop, ranks = _watch(rank_timeout)
    code = FAILED
    try:
        run(stop, ranks)
        code = DONE
    except Stopped as stopped:
        code = stopped.exit_code
        _tell(stopped, stop, ranks)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:
        wrong = isinstance(error, _WRONG_INPUT)
        if wrong and not (stop.step and isinstance(error, CheckpointError)):
            # After a step, weights that cannot be exported are the run's own, and no wrong input.
            code = WRONG_INPUT
        known = str(error) if wrong or isinstance(error, _SENTENCES) else explain(error)
        sentence = known or os_errors.explain(error)
        told = _unknown(error, stop, ranks) if sentence is None else f"Error: {sentence}"
        sys.unraisablehook = lambda failure: None  # what fails of half-made objects follows from it
        ranks.report(error, told)
    finally:
        stop.waits_for = "the end of the run"  # which no handler may interrupt
        ranks.finish(failed=code != DONE)
        stop.restore()
    return code


def _watch(rank_timeout: float) -> tuple[StopRequest, RankGuard]:
    """What signals leave, and the watch over other ranks, both begun."""
    _tell_of_threads()
    stop, ranks = StopRequest(), RankGuard(rank_timeout)
    ranks.watch_parent()
    stop.speaks = launch.rank() == 0
    stop.at_once = ranks.kill
    stop.install()
    stop.listen()
    return stop, ranks


def _tell_of_threads() -> None:
    """Say in a sentence what ends a thread, TensorBoard's of a full disk, where it has one."""
    usual = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        sentence = failure.exc_value and os_errors.explain(failure.exc_value)
        if sentence:
            log.warning(sentence)
        else:
            usual(failure)

    threading.excepthook = tell


def _tell(stopped: Stopped, stop: StopRequest, ranks: RankGuard) -> None:
    """How a stopped run ended, what is saved of it, and how it goes on."""
    if launch.rank() == 0:
        print(f"The run was {stopped}. {_state(stop, ranks)}", file=sys.stderr)
        requeue(stopped.signum)


def _state(stop: StopRequest, ranks: RankGuard) -> str:
    """What is saved of a run, and how it goes on; of a job, the sweep says how."""
    goes_on = stop.saved and not launch.is_job_of_sweep()
    return stop.kept() + (f". Continue it: resume=auto run_dir={ranks.folder}" if goes_on else "")


def _unknown(error: Exception, stop: StopRequest, ranks: RankGuard) -> str:
    """A failure whose cause is not known: the state of the run, then where it failed."""
    words = os_errors.first_line(error).rstrip(".")
    return (
        f"Error: {type(error).__name__}: {words}. {_state(stop, ranks)}\n"
        f"{''.join(traceback.format_exception(error))}"
    )


def requeue(signum: int) -> None:
    """Under SLURM, queue this job again where SIGUSR1 said that its time is nearly over.

    A job that was cancelled (SIGTERM) stays so, and one that is preempted is requeued by SLURM.
    """
    name = launch.scheduler_job()
    if name is None or signum != getattr(signal, "SIGUSR1", None):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
    except OSError as error:
        log.warning(f"SLURM job {name} could not be queued again: {error}")
        return
    if done.returncode:
        log.warning(f"SLURM job {name} could not be queued again: {done.stderr.strip()}")
    else:
        log.info(f"SLURM job {name} is queued again and will go on from here")
