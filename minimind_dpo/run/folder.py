"""A run's folder: where it is, what it continues from, and what is written into it.

One process decides, the others are told: through the environment where Lightning starts them,
through torch's process group under torchrun, by the job's number under SLURM.
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from minimind_dpo import __version__, launch
from minimind_dpo.config.compose import to_yaml
from minimind_dpo.config.schema import Config
from minimind_dpo.config.source import run_folder_of
from minimind_dpo.disk import write_text
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.lock import LOCK_FILE, FolderLock
from minimind_dpo.training.resume.checkpoint_io import (
    Header,
    newest_valid,
    read_header,
    step_files,
)

log = logging.getLogger(__name__)

_RUN: Final = "MINIMIND_DPO_RUN"
"""Variable by which the first rank tells those that it launches what it has decided."""

_WRITTEN: Final = (
    "adapters",
    "answers.jsonl",
    "checkpoints",
    "config.yaml",
    "csv",
    "export",
    "frontier.jsonl",
    "samples.md",
    "report.html",
    "tensorboard",
    "verdict.json",
)
"""What a run writes in its folder, in place of what lies there under these names."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run writes, and what it goes on from.

    Attributes:
        folder: Its folder, which may not exist yet.
        checkpoint: The state to resume from; None starts fresh.
        header: That state's header.
        fixed: Whether the folder's name was given; else a taken one gets a number.
    """

    folder: Path
    checkpoint: Path | None = None
    header: Header | None = None
    fixed: bool = False

    def to_text(self) -> str:
        """For another process."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint.absolute())
        header = None if self.header is None else asdict(self.header)
        return json.dumps([str(self.folder.absolute()), checkpoint, header, self.fixed])

    @classmethod
    def from_text(cls, text: str) -> Run:
        """What `to_text` wrote."""
        folder, checkpoint, header, fixed = json.loads(text)
        if checkpoint is None:
            return cls(Path(folder), fixed=fixed)
        return cls(Path(folder), Path(checkpoint), Header(**header), fixed)


def claim_run(config: Config, lock: FolderLock) -> Run:
    """Decide, with the run's folder locked if it is there already.

    Raises:
        ConfigError, DamagedCheckpointError: As `decide_run`; or another process is at it, or it
            holds files that no run has written and this one would replace.
    """
    if _inherited() is None:
        folder, fixed = _place(config)
        if fixed and folder.is_dir():
            _refuse_foreign_files(folder)
            lock.take(folder, "run_dir")
    return decide_run(config)


def decide_run(config: Config) -> Run:
    """Where this run writes and what it resumes from; nothing is written yet.

    Raises:
        ConfigError: The folder holds a run already, or there is nothing to resume.
        DamagedCheckpointError: States are there, and none is whole.
    """
    inherited = _inherited()
    if inherited is not None:
        return inherited
    folder, fixed = _folder(config)
    resumed = _resumed(config)
    if resumed is not None:
        return _resumed_from(resumed, folder, config.run_dir is not None)
    newest = newest_valid(folder / "checkpoints") if fixed else None
    if config.resume == "auto" or launch.is_requeued():
        if newest is None:
            log.info(f"nothing to resume in {folder}: starting")
            return Run(folder, fixed=fixed)
        log.info(f"resuming {newest[0]}")
        return Run(folder, *newest, fixed)
    if newest is not None or (folder / "summary.json").exists():
        why = "holds a run already, which a fresh one would overwrite"
        fix = "Continue it with resume=auto, or name another folder."
        raise ConfigError([Problem("run_dir", why, fix, str(folder))])
    return Run(folder, fixed=fixed)


def _inherited() -> Run | None:
    """What the process decided that started this one as a further rank."""
    text = os.environ.get(_RUN)
    return Run.from_text(text) if text and launch.launched_by_rank() else None


def _resumed(config: Config) -> Path | None:
    """The checkpoint or folder that `resume` names."""
    return None if config.resume in (None, "auto") else Path(str(config.resume)).expanduser()


def _folder(config: Config) -> tuple[Path, bool]:
    """Where a fresh run writes, and whether that is a name that was given."""
    if config.run_dir:
        return Path(config.run_dir).expanduser(), True
    base = Path(config.output_dir).expanduser() / "train"
    job = launch.scheduler_job()
    if job is not None:
        return base / f"slurm-{job}_{config.name}", True
    now = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return base / f"{now}_{config.name}", False


def _place(config: Config) -> tuple[Path, bool]:
    """Where a run is going to write, and whether that is a name that was given."""
    resumed = _resumed(config)
    own = None if resumed is None or config.run_dir else run_folder_of(resumed)
    return _folder(config) if own is None else (own, True)


def _refuse_foreign_files(folder: Path) -> None:
    for name in (*_WRITTEN, LOCK_FILE, "csv/metrics.csv"):
        path = folder / name
        if path.exists() and not path.is_file() and not path.is_dir():
            why = f"holds {name}, which is a pipe or a device"
            raise ConfigError([Problem("run_dir", why, "Move it elsewhere.", str(folder))])
    if (folder / LOCK_FILE).is_file() or step_files(folder / "checkpoints"):
        return  # a run's
    paths = [path for name in _WRITTEN if (path := folder / name).exists()]
    foreign = [path.name for path in paths if not path.is_dir() or any(path.iterdir())]
    if foreign:
        why = f"holds {' and '.join(foreign)}, which this run would replace and no run has written"
        raise ConfigError([Problem("run_dir", why, "Name a folder of its own.", str(folder))])


def _resumed_from(path: Path, folder: Path, elsewhere: bool) -> Run:
    """Go on from a named checkpoint or run folder: in its own folder, unless another is given."""
    if path.is_dir():
        newest = newest_valid(path if path.name == "checkpoints" else path / "checkpoints")
        if newest is None:
            why = "holds no checkpoint of a run (checkpoints/step-*.ckpt)"
            raise ConfigError([Problem("resume", why, value=str(path))])
    else:
        newest = path, read_header(path)
    checkpoint = newest[0]
    own = run_folder_of(checkpoint)
    if own is not None and not elsewhere:
        return Run(own, *newest, fixed=True)
    if step_files(folder / "checkpoints") and folder.resolve() != checkpoint.resolve().parents[1]:
        why = f"holds another run than the one that resume={path} continues"
        raise ConfigError([Problem("run_dir", why, "Name a new folder.", str(folder))])
    return Run(folder, *newest, elsewhere)


def make_folder(run: Run, lock: FolderLock, first: bool = True) -> Run:
    """Make and lock the folder on the first rank.

    Two runs that start in one second get two folders.

    Raises:
        ConfigError: Another run has been started in the same folder since this one looked.
    """
    if not first:
        return run
    if not run.fixed and run.checkpoint is None:
        run = Run(_new_folder(run.folder), fixed=True)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not lock.held:
        lock.take(run.folder, "run_dir")
        if (run.folder / "config.yaml").exists() and run.checkpoint is None:
            why = "was taken by another run while this one read its data"
            raise ConfigError([Problem("run_dir", why, "Name another folder.", str(run.folder))])
    return run


def tell_ranks(run: Run) -> None:
    """Let the ranks that this process will start know."""
    launch.announce_launcher()
    os.environ[_RUN] = run.to_text()


def _new_folder(base: Path) -> Path:
    base.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 1000):
        folder = base if attempt == 1 else base.with_name(f"{base.name}-{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{base} and a thousand names after it are taken")


def write_config(config: Config, folder: Path) -> None:
    """Keep the resolved configuration beside the run."""
    write_text(folder / "config.yaml", to_yaml(config))


def flat(config: Config) -> dict[str, Any]:
    """The configuration as one level of dotted keys and plain values."""

    def walk(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            plain = value if isinstance(value, int | float | str | bool) else str(value)
            return {prefix: plain}
        leaves: dict[str, Any] = {}
        for key, item in value.items():
            leaves |= walk(item, f"{prefix}.{key}" if prefix else str(key))
        return leaves

    return walk(asdict(config), "")


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    names = ("torch", "lightning", "transformers", "hydra-core", "omegaconf", "numpy")
    packages = {name: metadata.version(name) for name in names}
    return {"minimind_dpo": __version__, "python": platform.python_version(), **packages}
