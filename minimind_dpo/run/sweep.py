"""Jobs of a multirun: each is a run of its own, in a process of its own.

Inside one process, Hydra's jobs would share a process group, environment and seeds, and every rank
that a job starts would run the whole sweep again. So a job is `python -m minimind_dpo.train` with
the job's overrides and a folder of the sweep as its run folder, whatever launcher starts it. Its
objective is read from the summary it leaves there.

    <output_dir>/sweeps/<date>_<name>/<n>/   a run folder, and job.json; output.txt where jobs run
                                             at the same time
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from minimind_dpo import launch
from minimind_dpo.config.command_line import quoted
from minimind_dpo.config.source import Source
from minimind_dpo.disk import read_json, write_text
from minimind_dpo.exit_codes import FAILED, INTERRUPTED, TERMINATED
from minimind_dpo.report.jobs import Job, read_job, read_jobs
from minimind_dpo.report.options import SweepOptions
from minimind_dpo.report.sweep import tell_answer
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.training.option_values import parse_devices

NO_RESULT: Final = float("nan")
"""Objective of a job without one: a search goes on, and takes it for no result."""

_FAILURES: Final = ".failed"
"""File of a sweep's folder: numbers of the jobs that failed in this launch of it."""


def run_sweep(folder: Path, through_hydra: Callable[[], None]) -> int:
    """Run all jobs of a sweep in a folder that belongs to one process, and tell which are left.

    Args:
        folder: The sweep's; made if missing.
        through_hydra: Lets Hydra call `run_job` for each job.

    Returns:
        The exit code.

    Raises:
        ConfigError: Another process runs this sweep.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FolderLock() as lock:
        lock.take(folder, "run_dir")
        (folder / _FAILURES).unlink(missing_ok=True)
        code: Any = 0
        try:
            through_hydra()
        except SystemExit as end:
            code = end.code
        except KeyboardInterrupt:
            code = INTERRUPTED
        unfinished = unfinished_jobs(folder)
        if unfinished or code:
            left = f"Unfinished jobs of {folder}: {', '.join(unfinished) or 'none'}"
            print(f"{left}. The same command with run_dir={folder} runs what is left of the sweep")
        if any(job.loss is not None for job in read_jobs(folder)):
            tell_answer(folder)
    return code if isinstance(code, int) and code else int(bool(unfinished or code))


def unfinished_jobs(folder: Path) -> list[str]:
    """Jobs of a sweep's folder that have not ended well, by number."""
    path = folder / _FAILURES
    failed = set(path.read_text(encoding="utf-8").split()) if path.is_file() else set()
    failed |= {job.number for job in read_jobs(folder) if job.loss is None}
    return sorted(failed, key=lambda name: (len(name), name))


def run_job(cfg: DictConfig, source: Source, swept: frozenset[str]) -> float:
    """One job, called by any of Hydra's launchers; `sweep.objective`, NaN if it has none.

    Args:
        cfg: The job's configuration, without Hydra's own.
        source: Files of the user's own that it was composed of.
        swept: Keys that have another value in other jobs.
    """
    hydra = HydraConfig.get()
    search = [text for text in hydra.overrides.hydra if text.startswith("hydra.searchpath=")]
    at_once = "joblib" in str(hydra.launcher.get("_target_"))
    job = JobProcess(
        folder=Path(hydra.runtime.output_dir),
        arguments=[*source.flags(), *search, *hydra.overrides.task],
        varied=[
            text for text in hydra.overrides.task if text.lstrip("+~").partition("=")[0] in swept
        ],
        settings="" if source.file is None else source.file.read_text(encoding="utf-8"),
        quiet=at_once,
        devices=devices_of_job(int(hydra.job.num), cfg.trainer.devices) if at_once else None,
        options=SweepOptions(cfg.sweep.objective, cfg.sweep.max_kl),
    )
    if at_once and not _sweep_of_worker:
        # SIGTERM passes on to the job that this process of the launcher runs.
        _sweep_of_worker.append(os.getppid())
        launch.watch_parent(os.getppid(), lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        return job.result()
    except OSError as error:
        return job.failed(str(error))
    except SystemExit:
        if at_once and os.getppid() != _sweep_of_worker[0]:
            os._exit(FAILED)  # nobody is left to whom the launcher could hand an exception
        raise


_sweep_of_worker: Final[list[int]] = []
"""The sweep's own process, in a process of the launcher that runs jobs at the same time."""


def devices_of_job(number: int, devices: Any) -> str | None:
    """CUDA_VISIBLE_DEVICES of one of the jobs that run at the same time.

    Jobs take turns by their number, so where there are fewer GPUs than jobs, several share one.

    Args:
        number: The job's.
        devices: `trainer.devices`.

    Returns:
        None leaves the variable as it is: there is no GPU, or the job names its own.
    """
    import torch

    count, asked = torch.cuda.device_count(), parse_devices(devices)
    if not count or isinstance(asked, list):
        return None
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(count)]
    each = min(asked or 1, len(names))
    return ",".join(names[(number * each + i) % len(names)] for i in range(each))


@dataclass
class JobProcess:
    """A run of a sweep, in a process of its own.

    Attributes:
        folder: Its run folder.
        arguments: Its command line, but for the folder.
        varied: Those of its arguments that it does not share with all other jobs.
        settings: Content of the user's file of settings.
        quiet: Send what it prints to `output.txt` in its folder.
        devices: Its CUDA_VISIBLE_DEVICES; None for those of this process.
        options: What a search goes by.
    """

    folder: Path
    arguments: list[str]
    varied: Sequence[str] = ()
    settings: str = ""
    quiet: bool = False
    devices: str | None = None
    options: SweepOptions = field(default_factory=SweepOptions)

    @property
    def label(self) -> str:
        """What it is called."""
        return f"job {self.folder.name} ({' '.join(self.varied or self.arguments)})"

    def result(self) -> float:
        """Run it, or what is left of it, or read the result it has already.

        Raises:
            SystemExit: This process was asked to stop, and the job has ended.
        """
        content = {"arguments": self.arguments, "settings": self.settings}
        path = self.folder / "job.json"
        if path.exists() and read_json(path) != content:
            return self.failed(f"{self.folder} holds another job. Name another run_dir")
        before = read_job(self.folder)
        if before.loss is not None:
            return self._done("was done before", before)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content))
        print(f"{self.label} begins in {self.folder}", flush=True)
        started = time.monotonic()
        code = self._run()
        if code:
            where = f", see {self.folder / 'output.txt'}" if self.quiet else ""
            return self.failed(f"it ended with exit code {code}{where}")
        after = read_job(self.folder)
        if after.loss is None:
            return self.failed(f"{self.folder / 'summary.json'} has no loss")
        return self._done(f"done in {time.monotonic() - started:.0f} s", after)

    def _done(self, how: str, run: Job) -> float:
        print(f"{self.label} {how}: {run.result}", flush=True)
        value = run.objective(self.options)
        return NO_RESULT if value is None else value

    def _run(self) -> int:
        # An override that is given last wins.
        arguments = [*self.arguments, f"run_dir={quoted(str(self.folder))}", "resume=auto"]
        environment = launch.job_environment()
        if self.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices
        output = (self.folder / "output.txt").open("ab") if self.quiet else None
        with passing_signals() as start:
            process = start(
                [sys.executable, "-m", "minimind_dpo.train", *arguments],
                env=environment,
                stdout=output,
                stderr=output,
            )
            code = process.wait()
        if output is not None:
            output.close()
        return code

    def failed(self, why: str) -> float:
        """Say and note that it failed."""
        print(f"{self.label} failed: {why}", file=sys.stderr, flush=True)
        with (self.folder.parent / _FAILURES).open("a", encoding="utf-8") as file:
            file.write(f"{self.folder.name}\n")
        return NO_RESULT


@contextmanager
def passing_signals() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Stop the process that is started inside when this one is asked to stop, and then this one.

    Yields:
        `subprocess.Popen`, to be called once.

    Raises:
        SystemExit: Once the process has ended.
    """
    running: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        asked.append(signum)
        # Ctrl-C reaches all processes of a terminal by itself, and a second one would be "at once".
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM if signum == signal.SIGINT else signum)

    def start(*args: Any, **keywords: Any) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen(*args, **keywords))
        if asked:  # it came while the process was started
            running[0].send_signal(signal.SIGTERM)
        return running[0]

    if threading.current_thread() is not threading.main_thread():
        yield start
        return
    before = {number: signal.signal(number, pass_on) for number in launch.heeded_signals()}
    try:
        yield start
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise SystemExit(INTERRUPTED if asked[0] == signal.SIGINT else TERMINATED)
