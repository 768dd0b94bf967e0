"""What a finished run leaves: exported weights and the numbers of its summary."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L

from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.models.export import native_name, save_hf, save_native
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.models.lora import has_adapters, merge_adapters, save_adapters
from minimind_dpo.runs import Clock, versions
from minimind_dpo.schema import Config
from minimind_dpo.training.callbacks.best_checkpoint import BestCheckpoint
from minimind_dpo.training.callbacks.throughput import Throughput
from minimind_dpo.training.callbacks.weights_changed import WeightsChanged
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.storage import read_checkpoint

log = logging.getLogger(__name__)


def export_weights(
    config: Config, trainer: L.Trainer, module: DPOModule, policy: LoadedModel, run_dir: Path
) -> None:
    """Write `export/`, and `adapters/` where there are any; the model is a plain one after it."""
    if config.export.which == "best":
        _load_best(trainer, module)
    folder = run_dir / "export"
    if has_adapters(policy.model):
        save_adapters(policy.model, run_dir / "adapters")
        merge_adapters(policy.model)
    if config.export.hf:
        save_hf(policy.model, policy.tokenizer, folder)
    if config.export.native and policy.dialect.generation is not None:
        save_native(policy.model, policy.dialect, folder / native_name(policy.dialect))


def _load_best(trainer: L.Trainer, module: DPOModule) -> None:
    """Put the weights with the best monitored value into the policy, if they are not there now.

    The last validation comes after training and saves no state: its weights are the policy's own.
    """
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
    if not kept or not kept[0].best_model_path:
        log.warning("export.which=best, but no best state was kept: exporting the last weights")
        return
    best, score = kept[0], float(kept[0].best_model_score or float("nan"))
    last = module.last_val_metrics.get(str(best.monitor).removeprefix("val/"), float("nan"))
    if last < score if best.mode == "min" else last > score:
        log.info(f"The last weights are the best: {best.monitor} {last:.4f}")
        return
    module.load_state_dict(read_checkpoint(Path(best.best_model_path))["state_dict"])
    log.info(f"Exporting the best weights, {Path(best.best_model_path).name}: {score:.4f}")


def summarise(
    config: Config,
    trainer: L.Trainer,
    module: DPOModule,
    data: PreferenceDataModule,
    policy: LoadedModel,
    before: dict[str, float],
    clock: Clock,
) -> dict[str, Any]:
    """The content of `summary.json`, but for the embedded task's table."""
    callbacks = {type(c): c for c in trainer.callbacks}  # type: ignore[attr-defined]
    throughput = callbacks[Throughput]
    assert data.train_store is not None
    changed = callbacks.get(WeightsChanged)
    return {
        "name": config.name,
        "train": module.last_train_metrics,
        "val": module.last_val_metrics,
        "val_before": before,
        "pairs_seen": throughput.pairs,
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
        "wall_seconds": clock.wall,
        "cpu_seconds": clock.cpu,
        "training_seconds": throughput.seconds,
        "pairs_per_second": throughput.pairs / max(throughput.seconds, 1e-9),
        "weights_changed": getattr(changed, "share", None),
        "bad_steps": module.guard.total,
        "recognised": {
            "dialect": policy.dialect.name,
            "class": policy.dialect.class_name,
            "parameters": policy.dialect.num_parameters,
        },
        "data": {
            "train": data.train_store.report,
            "train_pairs": len(data.train_rows),
            "val_pairs": len(data.val_rows),
        },
        "versions": versions(),
        "seed": config.seed,
    }
