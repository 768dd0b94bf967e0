"""How this process was started: its rank among others, its job, and the process it belongs to.

Lightning starts further ranks itself, or torchrun or SLURM's srun have started all of them. Nothing
here imports torch: the command line asks before anything slow is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from minimind_dpo.options.problem import ConfigError, Problem

_LAUNCHER: Final = "MINIMIND_DPO_LAUNCHER"
_SWEEP: Final = "MINIMIND_DPO_SWEEP"
_NUMBERS: Final = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "WORLD_SIZE",
    "MASTER_PORT",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_RESTART_COUNT",
    _SWEEP,
)
_OF_TORCHRUN: Final = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_OF_RANKS: Final = (
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
)
_PREFIXES_OF_RANKS: Final = ("MASTER_", "MINIMIND_DPO_", "PL_", "SLURM_", "TORCHELASTIC_")
_ALLOCATOR: Final = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""torch's variable for its allocators since 2.9, and the older name that it still reads."""
_LOOKS: Final = 0.5
"""Seconds between two looks at a parent process."""
STOP_SIGNALS: Final = tuple(
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT")
    if hasattr(signal, name)  # Windows lacks some
)
"""What stops a run; where its ranks got different ones, the later one here counts."""


def heeded_signals() -> list[int]:
    """Those of `STOP_SIGNALS` that this process heeds: nohup has it ignore SIGHUP."""
    hang_up = getattr(signal, "SIGHUP", None)
    ignored = hang_up is not None and signal.getsignal(hang_up) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (ignored and number == hang_up)]


def check_environment() -> None:
    """Refuse launchers' variables that are wrong or incomplete, and a current folder that is gone.

    Raises:
        ConfigError: Naming all of them.
    """
    needed = _OF_TORCHRUN if started_by_torchrun() else ()
    wrong = [
        Problem(name, "in the environment must be a whole number", "Correct or unset it.", text)
        for name in _NUMBERS
        if (text := os.environ.get(name, "" if name in needed else None)) is not None
        and not text.isdecimal()
    ]
    try:
        os.getcwd()
    except FileNotFoundError:
        wrong.append(Problem("the current folder", "was deleted", "Change into another one."))
    number, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not wrong and int(number) >= int(size):
        why = f"in the environment must be below WORLD_SIZE={size}"
        wrong = [Problem("RANK", why, "Correct or unset them.", number)]
    if wrong:
        raise ConfigError(wrong)


def let_memory_grow() -> None:
    """Let torch's CUDA allocator extend its blocks, unless the user has set it up.

    The number of tokens changes with each batch, and blocks of fixed sizes leave gaps. To be called
    before torch is imported; other devices do not read it, and Windows has no such memory.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


def started_by_torchrun() -> bool:
    """Whether torchrun started all ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_srun() -> bool:
    """Whether srun started all ranks, as Lightning tells it: not in a shell opened in a job."""
    return "SLURM_NTASKS" in os.environ and not _in_shell_of_job()


def world_size() -> int | None:
    """Processes that torchrun or srun started; None where nobody but Lightning starts any."""
    if started_by_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if started_by_srun() else None


def rank() -> int:
    """This process's rank over all machines; 0 where there is none."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    if started_by_srun():
        return int(os.environ.get("SLURM_PROCID", "0"))
    # On a second machine, Lightning knows the rank only later; it is not the first in any case.
    return local_rank() if os.environ.get("NODE_RANK", "0") == "0" else max(1, local_rank())


def local_rank() -> int:
    """This process's rank on its machine."""
    srun = started_by_srun() and "LOCAL_RANK" not in os.environ
    return int(os.environ.get("SLURM_LOCALID" if srun else "LOCAL_RANK", "0"))


def scheduler_job() -> str | None:
    """Number of SLURM's job, the same after a requeue; None outside one and in a shell of one."""
    if _in_shell_of_job():
        return None
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def is_requeued() -> bool:
    """Whether SLURM has run this job before."""
    return scheduler_job() is not None and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def _in_shell_of_job() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")


def launched_by_rank() -> bool:
    """Whether the first rank of a run on this machine started this process as a further one.

    The parent's number tells a further rank from a run of its own in an old environment.
    """
    return local_rank() != 0 and os.environ.get(_LAUNCHER) == str(os.getppid())


def announce_launcher() -> None:
    """Let the ranks that this process will start know it; nothing in a further rank itself."""
    if not launched_by_rank():
        os.environ[_LAUNCHER] = str(os.getpid())


def watch_parent(parent: int, gone: Callable[[], None]) -> None:
    """Call `gone`, in a thread, once the process with number `parent` is not this one's parent."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOKS)
        gone()

    threading.Thread(target=look, daemon=True, name="watch-parent").start()


def job_environment() -> dict[str, str]:
    """The environment of a job: a run that is no rank of anything and ends with this process."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_RANKS and not name.startswith(_PREFIXES_OF_RANKS)
    }
    return {**clean, _SWEEP: str(os.getpid())}


def is_job_of_sweep() -> bool:
    """Whether a sweep that still runs started this process."""
    return os.environ.get(_SWEEP) == str(os.getppid())


def end_with_sweep() -> None:
    """Where a sweep started this process, stop it as SIGTERM does once the sweep has ended."""
    sweep = os.environ.get(_SWEEP)
    if sweep is not None and not launched_by_rank():
        watch_parent(int(sweep), lambda: os.kill(os.getpid(), signal.SIGTERM))
