"""What a run's checkpoints were made with, and whether a run that resumes one is still that run."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minimind_dpo.checksums import sha256
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.disk import read_json
from minimind_dpo.models.locate import model_files
from minimind_dpo.run.folder import Run
from minimind_dpo.training.resume.position import check_belongs, differences

log = logging.getLogger(__name__)


def file_digest(path: str, adapters: str | None = None) -> str:
    """SHA-256 over the weights and settings at a path; the name itself for a hub's model."""
    files = model_files(path, adapters)
    if not files:
        return path
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(sha256(file)))
    return digest.hexdigest()


def policy_digest(config: Config, run: Path | None, step: int | None = None) -> str:
    """What tells policies apart whose answers are voted on.

    Of a run it is its settings and the optimizer step that its weights are of: both are known
    before its export is written, and whatever the number format of that.

    Args:
        config: Names the model where there is no run.
        run: The run's folder.
        step: Of its weights; None where its summary tells.
    """
    if run is None:
        return file_digest(config.model.path, config.model.adapters)
    if step is None:
        summary: Any = read_json(run / "summary.json") or {}
        step = summary.get("weights", {}).get("export")
    content = f"{step}\n".encode() + (run / "config.yaml").read_bytes()
    return hashlib.sha256(content).hexdigest()


def check_identity(
    config: Config, data: PreferenceDataModule, run: Run
) -> dict[str, dict[str, Any]]:
    """What this run's checkpoints belong to; the one that it resumes from has to belong to it too.

    Args:
        config: The configuration.
        data: Prepared, so that its fingerprints are known.
        run: With the checkpoint, if there is one.

    Raises:
        ResumeMismatchError: It was made with something else; not under `resume_with_changes`.
    """
    identity = _identity(config, data)
    if run.header is not None:
        saved = run.header.belongs
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
    identity: dict[str, dict[str, Any]] = {
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
    return dict(json.loads(json.dumps(identity, default=str)))
