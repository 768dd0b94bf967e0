"""Jobs of a multirun: each is a run of its own, in a process of its own.

Inside one process, Hydra's jobs would share a process group, environment and seeds, and every rank
that a job starts would run the whole sweep again. So a job is `python -m minimind_dpo.train` with
the job's overrides and a folder of the sweep as its run folder, whatever launcher starts it. Its
objective is read from the summary it leaves there.

    <output_dir>/sweeps/<name>/<n>/   a run folder, and job.json, output.txt
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any, ClassVar, Final

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from minimind_dpo.disk import write_text
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.lock import FolderLock

FAILED: Final = float("nan")
"""Objective of a job without one: search goes on, and takes it for no result."""

_RANK_VARIABLES: Final = (
    "GROUP_RANK",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "RANK",
    "WORLD_SIZE",
)
_RANK_PREFIXES: Final = ("MASTER_", "MINIMIND_DPO_", "PL_", "SLURM_", "TORCHELASTIC_")


def run_job(cfg: DictConfig) -> float:
    """One job, called by any of Hydra's launchers; its validation loss, NaN if it failed."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    jobs = Jobs()
    with jobs.forwarding_signals():
        return jobs.run(folder, list(hydra.overrides.task))


class ProcessLauncher(Launcher):
    """Hydra's launcher that runs `sweep.jobs` jobs at a time on this machine."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Called by Hydra."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; their results in order."""
        setup_globals()
        at_once = int(self.config.sweep.jobs)
        jobs = Jobs(device_slots(at_once, self.config.trainer.devices), quiet=at_once > 1)
        prepared = [
            self._prepare(initial_job_idx + i, list(overrides))
            for i, overrides in enumerate(job_overrides)
        ]
        with jobs.forwarding_signals(), ThreadPoolExecutor(at_once) as pool:
            common = set.intersection(*(set(overrides) for overrides in job_overrides))
            futures = [
                pool.submit(
                    jobs.run,
                    folder,
                    list(config.hydra.overrides.task),
                    " ".join(o for o in overrides if len(job_overrides) > 1 and o not in common),
                )
                for overrides, (folder, config) in zip(job_overrides, prepared, strict=True)
            ]
            objectives = [future.result() for future in futures]
        return [
            JobReturn(
                overrides=list(overrides),
                cfg=config,
                hydra_cfg=config,
                working_dir=str(folder),
                _return_value=objective,
                status=JobStatus.COMPLETED,
            )
            for overrides, (folder, config), objective in zip(
                job_overrides, prepared, objectives, strict=True
            )
        ]

    def _prepare(self, number: int, overrides: list[str]) -> tuple[Path, DictConfig]:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir), config


class SweepEnd(Callback):
    """Keeps a sweep's folder to one process, and counts the jobs that have not ended well."""

    failed: ClassVar[list[str]] = []

    def __init__(self) -> None:
        self.lock = FolderLock()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, before any job; whatever launches them.

        Raises:
            SystemExit: With 2, if another process runs this sweep.
        """
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.take(folder, "hydra.sweep.dir")
        except ConfigError as error:
            print(f"Error: {error}", file=sys.stderr)
            raise SystemExit(2) from None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra, in the process that runs the sweep."""
        folder = Path(config.hydra.sweep.dir)
        SweepEnd.failed = sweep_failures(folder)
        if SweepEnd.failed:
            print(
                f"{len(SweepEnd.failed)} jobs of {folder} are unfinished: "
                f"{', '.join(SweepEnd.failed)}. The same command runs what is left of them",
                file=sys.stderr,
            )


def register_launcher() -> None:
    """Let Hydra's basic launcher run jobs in processes of their own. Repeatable."""
    # NOTE: Hydra takes launchers from its own packages only, so this one goes by the name of the
    # default, which would run all jobs in this process.
    name = f"{BasicLauncher.__module__}.{BasicLauncher.__name__}"
    Plugins.instance().class_name_to_class[name] = ProcessLauncher


def device_slots(at_once: int, devices: Any) -> list[str | None]:
    """The value of CUDA_VISIBLE_DEVICES for each of the jobs that run at the same time.

    None leaves it as it is: on a machine without GPUs, or for one job at a time. Where there are
    fewer GPUs than jobs, several share one.
    """
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    if at_once == 1 or not torch.cuda.device_count():
        return [None] * at_once
    each = devices if isinstance(devices, int) and devices > 0 else 1
    return [
        ",".join(there[(slot * each + i) % len(there)] for i in range(min(each, len(there))))
        for slot in range(at_once)
    ]


class Jobs:
    """Runs jobs in processes of their own, and passes signals on to them.

    Args:
        slots: CUDA_VISIBLE_DEVICES of the jobs that run at the same time.
        quiet: Send what jobs print to `output.txt` in their folders.
    """

    def __init__(self, slots: Sequence[str | None] = (None,), quiet: bool = False) -> None:
        self.quiet = quiet
        self.signum = 0
        self._slots: SimpleQueue[str | None] = SimpleQueue()
        for slot in slots:
            self._slots.put(slot)
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self, folder: Path, overrides: list[str], own: str = "") -> float:
        """Run a job, or what is left of it, or read the result it has already.

        Args:
            folder: The job's.
            overrides: Its whole command line.
            own: The part of it that other jobs do not share, to name it by.
        """
        label = f"job {folder.name} ({own or ' '.join(overrides)})"
        earlier = read_json(folder / "job.json").get("overrides", overrides)
        if earlier != overrides:
            print(
                f"{label} failed: {folder} holds another one ({' '.join(earlier)}). Give this "
                "sweep a name of its own: name=NAME",
                file=sys.stderr,
            )
            return FAILED
        if (folder / "summary.json").is_file():
            print(f"{label} was done before: val/loss {objective(folder):.6g}", flush=True)
            return objective(folder)
        slot = self._slots.get()
        try:
            if self.signum:
                return FAILED  # not begun: nothing is left of it
            return self._run(folder, overrides, slot, label)
        finally:
            self._slots.put(slot)

    def _run(self, folder: Path, overrides: list[str], slot: str | None, label: str) -> float:
        folder.mkdir(parents=True, exist_ok=True)
        # An override that is given last wins.
        arguments = [*overrides, f"run_dir={quoted(str(folder))}", "resume=auto"]
        write_text(folder / "job.json", json.dumps({"overrides": overrides}))
        environment = clean_environment(os.environ)
        if slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = slot
        started = time.monotonic()
        with (folder / "output.txt").open("ab") as output:
            target = output if self.quiet else None
            process = subprocess.Popen(
                [sys.executable, "-m", "minimind_dpo.train", *arguments],
                env=environment,
                stdout=target,
                stderr=target,
            )
            self._running.append(process)
            if self.signum:  # it came while the process was started
                process.send_signal(signal.SIGTERM)
            code = process.wait()
        took = time.monotonic() - started
        if code == 0:
            value = objective(folder)
            print(f"{label} done in {took:.0f} s: val/loss {value:.6g}", flush=True)
            return value
        where = f", see {folder / 'output.txt'}" if self.quiet else ""
        print(f"{label} ended with exit code {code}{where}", file=sys.stderr, flush=True)
        return FAILED

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Stop jobs when this process is asked to stop, and then this process.

        Raises:
            SystemExit: With 130 or 143, once the jobs have saved and ended.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = ("SIGTERM", "SIGINT", "SIGUSR1")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before = {number: signal.signal(number, self._forward) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.signum:
            raise SystemExit(130 if self.signum == signal.SIGINT else 143)

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        # Ctrl-C reaches all processes of a terminal by itself, and a second one would be "at once".
        passed = signal.SIGTERM if signum == signal.SIGINT else signum
        for process in self._running:
            if process.poll() is None:
                process.send_signal(passed)


def objective(folder: Path) -> float:
    """A finished job's validation loss; its training loss where nothing was validated."""
    summary = read_json(folder / "summary.json")
    for part in ("val", "train"):
        value = summary.get(part, {}).get("loss")
        if value is not None:
            return float(value)
    return FAILED


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a job is no rank of anything."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _RANK_VARIABLES and not name.startswith(_RANK_PREFIXES)
    }


def quoted(text: str) -> str:
    """A value in Hydra's override grammar, whatever characters it has."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def sweep_failures(folder: Path) -> list[str]:
    """Jobs of a sweep folder that have not ended well, by name."""
    jobs = sorted(path.parent for path in folder.glob("*/job.json"))
    return [job.name for job in jobs if not (job / "summary.json").is_file()]
