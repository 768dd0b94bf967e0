"""A run's folder: where it is, what it continues from, and what is written into it.

One process decides, the others are told: through the environment where Lightning starts them,
through torch's process group under torchrun, by the job's number under SLURM.
"""

from __future__ import annotations

import datetime
import hashlib
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
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.disk import sha256, write_text
from minimind_dpo.models.locate import model_files
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.training.resume.checkpoint_io import newest_valid, read_header, step_files
from minimind_dpo.training.resume.position import check_belongs, differences

log = logging.getLogger(__name__)

_RUN: Final = "MINIMIND_DPO_RUN"
"""Tells the ranks that the first one launches what it has decided."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where a run writes, and what it goes on from.

    Attributes:
        folder: Its folder, which may not exist yet.
        checkpoint: The state to resume from; None starts fresh.
        fixed: Whether the folder's name was given; else a taken one gets a number.
    """

    folder: Path
    checkpoint: Path | None = None
    fixed: bool = False

    def to_text(self) -> str:
        """For another process."""
        checkpoint = None if self.checkpoint is None else str(self.checkpoint.absolute())
        return json.dumps([str(self.folder.absolute()), checkpoint, self.fixed])

    @classmethod
    def from_text(cls, text: str) -> Run:
        """What `to_text` wrote."""
        folder, checkpoint, fixed = json.loads(text)
        return cls(Path(folder), None if checkpoint is None else Path(checkpoint), fixed)


def claim_run(config: Config, lock: FolderLock) -> Run:
    """Decide, with the run's folder locked if it is there already.

    Raises:
        ConfigError, DamagedCheckpointError: As `decide_run`; or another process is at it.
    """
    if _inherited() is None:
        folder, fixed = _place(config)
        if fixed and folder.is_dir():
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
    if config.resume not in (None, "auto"):
        assert config.resume is not None
        return _resumed_from(Path(config.resume).expanduser(), folder, config.run_dir is not None)
    checkpoint = newest_valid(folder / "checkpoints") if fixed else None
    if config.resume == "auto" or launch.is_requeued():
        told = (
            f"resuming {checkpoint}" if checkpoint else f"nothing to resume in {folder}: starting"
        )
        log.info(told)
        return Run(folder, checkpoint, fixed)
    if checkpoint is not None or (folder / "summary.json").exists():
        why = "holds a run already, which a fresh one would overwrite"
        fix = "Continue it with resume=auto, or name another folder."
        raise ConfigError([Problem("run_dir", why, fix, str(folder))])
    return Run(folder, None, fixed)


def _inherited() -> Run | None:
    """What the process decided that started this one as a further rank."""
    text = os.environ.get(_RUN)
    return Run.from_text(text) if text and launch.launched_by_rank() else None


def _folder(config: Config) -> tuple[Path, bool]:
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
    folder, fixed = _folder(config)
    if config.run_dir or config.resume in (None, "auto"):
        return folder, fixed
    assert config.resume is not None
    states = Path(config.resume).expanduser()
    if states.is_dir() and states.name != "checkpoints":
        states = states / "checkpoints"
    elif not states.is_dir():
        states = states.parent
    return (states.parent, True) if states.name == "checkpoints" else (folder, fixed)


def _resumed_from(path: Path, folder: Path, elsewhere: bool) -> Run:
    """Go on from a named checkpoint or run folder: in its own folder, unless another is given."""
    if path.is_dir():
        states = path if path.name == "checkpoints" else path / "checkpoints"
        checkpoint = newest_valid(states)
        if checkpoint is None:
            why = "holds no checkpoint of a run (checkpoints/step-*.ckpt)"
            raise ConfigError([Problem("resume", why, value=str(path))])
    else:
        checkpoint = path
    own = checkpoint.parent.name == "checkpoints"
    if elsewhere or not own:
        if step_files(folder / "checkpoints") and folder.resolve() != _run_of(checkpoint):
            why = f"holds another run than the one that resume={path} continues"
            raise ConfigError([Problem("run_dir", why, "Name a new folder.", str(folder))])
        return Run(folder, checkpoint, elsewhere)
    return Run(checkpoint.parent.parent, checkpoint, True)


def _run_of(checkpoint: Path) -> Path:
    return checkpoint.resolve().parent.parent


def make_folder(run: Run, lock: FolderLock, first: bool = True) -> Run:
    """Make and lock the folder on the first rank.

    Two runs that start in one second get two folders.

    Raises:
        ConfigError: Another run has been started in the same folder since this one looked.
    """
    if not first:
        return run
    if not run.fixed and run.checkpoint is None:
        run = Run(_new_folder(run.folder), None, True)
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


def file_digest(path: str, adapters: str | None = None) -> str:
    """SHA-256 over the weights and settings at a path; the name itself for a hub's model."""
    files = model_files(path, adapters)
    if not files:
        return path
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()


def check_identity(
    config: Config, data: PreferenceDataModule, run: Run
) -> dict[str, dict[str, Any]]:
    """What this run's checkpoints belong to, once the one it resumes from is found to fit.

    Args:
        config: The configuration.
        data: Prepared, so that its fingerprints are known.
        run: With the checkpoint, if there is one.

    Raises:
        ResumeMismatchError: It was made with something else; not under `resume_with_changes`.
    """
    identity = _identity(config, data)
    if run.checkpoint is not None:
        saved = read_header(run.checkpoint)["belongs"]
        if config.resume_with_changes:
            for difference in differences(saved, identity):
                log.warning(f"Resuming with changes: {difference}")
        else:
            check_belongs(saved, identity, str(run.checkpoint))
    return identity


def _identity(config: Config, data: PreferenceDataModule) -> dict[str, dict[str, Any]]:
    """{what: {detail: plain value}}."""
    stores = {"train": data.train_store, "validation": data.val_store}
    reference = config.reference
    optim = asdict(config.optim)
    optim.pop("fused")
    found: dict[str, dict[str, Any]] = {
        "data": {
            **{name: store and store.fingerprint for name, store in stores.items()},
            "val_fraction": config.data.val_fraction,
            "seed": config.seed,
            "shuffle": config.data.shuffle,
            "drop_last": config.data.drop_last,
        },
        "tokenizer": {"rules": data.tokenizer.fingerprint},
        "model": {
            "start": file_digest(config.model.path, config.model.adapters),
            "config": dict(config.model.config),
        },
        "reference": {
            "needed": reference.mode != "none",
            "weights": file_digest(
                reference.path or config.model.path,
                config.model.adapters if reference.path is None else None,
            ),
            "dtype": reference.dtype or config.model.dtype,
        },
        "loss": asdict(config.loss),
        "optimizer": optim,
        "schedule": asdict(config.schedule),
        "arithmetic": {"precision": config.trainer.precision, "dropout": config.model.dropout},
        "adapters": asdict(config.model.lora),
    }
    # Through text, so that a checkpoint holds plain values only.
    return dict(json.loads(json.dumps(found, default=str)))


def write_config(config: Config, folder: Path) -> None:
    """Keep the resolved configuration beside the run."""
    write_text(folder / "config.yaml", to_yaml(config))


def flat(config: Config) -> dict[str, Any]:
    """The configuration as one level of dotted keys and plain values."""

    def walk(value: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            plain = value if isinstance(value, int | float | str | bool) else str(value)
            return {prefix: plain}
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= walk(item, f"{prefix}.{key}" if prefix else str(key))
        return found

    return walk(asdict(config), "")


def write_json(content: dict[str, Any], path: Path) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of everything that the numbers depend on."""
    names = ("torch", "lightning", "transformers", "hydra-core", "omegaconf", "numpy")
    found = {name: metadata.version(name) for name in names}
    return {"minimind_dpo": __version__, "python": platform.python_version(), **found}
