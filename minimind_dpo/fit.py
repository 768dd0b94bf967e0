"""One training run, from a checked configuration to exported weights and a summary."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from minimind_dpo.allocator import keep_freed_memory
from minimind_dpo.build import (
    build_callbacks,
    build_datamodule,
    build_loggers,
    build_module,
    build_policy,
    build_reference,
    build_tokenizer,
    build_trainer,
)
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.problems import DataError
from minimind_dpo.data.report import print_report
from minimind_dpo.memory import is_out_of_memory, memory_advice
from minimind_dpo.models.dialects import CheckpointError
from minimind_dpo.models.export import native_name, save_hf, save_native
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.models.lora import has_adapters, merge_adapters, save_adapters
from minimind_dpo.objective.validation import padded_mean_warning
from minimind_dpo.runs import Clock, flat, make_run_dir, versions, write_config, write_json
from minimind_dpo.schema import Config
from minimind_dpo.training.callbacks.throughput import Throughput
from minimind_dpo.training.callbacks.weights_changed import WeightsChanged
from minimind_dpo.training.module import DPOModule

log = logging.getLogger(__name__)
console = Console()

DONE, FAILED, WRONG_INPUT = 0, 1, 2


def fit_from_command_line(config: Config) -> int:
    """Run, and tell people in a sentence what is wrong with their input; the exit code."""
    try:
        fit(config)
    except (CheckpointError, DataError) as error:
        if _is_first_rank():
            print(f"Error: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.debug("out of memory", exc_info=True)
        print(f"Error: {memory_advice(config)}", file=sys.stderr)
        return FAILED
    return DONE


def fit(config: Config) -> dict[str, Any]:
    """Train, export and summarise one run.

    Returns:
        The content of `summary.json`.
    """
    clock = Clock()
    _quiet(config.log_level)
    first = _is_first_rank()
    L.seed_everything(config.seed, workers=False, verbose=False)
    if config.trainer.accelerator in ("cpu", "auto") and not torch.cuda.is_available():
        keep_freed_memory()
    torch.set_float32_matmul_precision(config.model.matmul_precision)
    tokenizer = build_tokenizer(config)
    data = build_datamodule(config, tokenizer, progress=first)
    data.prepare_data()
    run_dir = make_run_dir(config)
    if first:
        write_config(config, run_dir)
        _report_data(data)
    policy = build_policy(config, tokenizer)
    log.info(f"Policy: {policy.describe()}")
    if config.loss.reduction == "padded_mean":
        log.warning(padded_mean_warning(config.loss.beta, config.data.max_length - 1))
    module = build_module(config, policy, build_reference(config, progress=first), data)
    trainer = build_trainer(
        config,
        build_callbacks(config, policy, run_dir),
        build_loggers(config, run_dir),
        run_dir,
    )
    log.info(f"Run folder: {run_dir}")
    judged = _Judge(config, policy) if config.callbacks.judge == "demo" else None
    before = _validate_before(trainer, module, data)
    if judged:
        judged.before(before)
    _log_hyperparameters(config, trainer, before)
    trainer.fit(module, datamodule=data)
    if not trainer.is_global_zero:
        return {}
    if config.export.which == "best":
        _load_best(trainer, module)
    _export(config, policy, run_dir)
    summary = _summary(config, trainer, module, data, policy, before, clock)
    if judged:
        summary["demo"] = judged.after(module.last_val_metrics)
    write_json(summary, run_dir / "summary.json")
    log.info(f"Done. Weights: {run_dir / 'export'}  Numbers: {run_dir / 'summary.json'}")
    log.info(f"Curves: tensorboard --logdir {run_dir}")
    return summary


def _validate_before(
    trainer: L.Trainer, module: DPOModule, data: PreferenceDataModule
) -> dict[str, float]:
    """Validation at step 0; nothing where there is no validation data."""
    data.trainer = trainer
    data.setup("validate")
    if len(data.val_rows) == 0 or trainer.limit_val_batches == 0:
        return {}
    trainer.validate(module, datamodule=data, verbose=False)
    return dict(module.last_val_metrics)


def _report_data(data: PreferenceDataModule) -> None:
    assert data.train_store is not None
    print_report(data.train_store.report, console, "Training data")
    if data.val_store is not None:
        print_report(data.val_store.report, console, "Validation data")


def _log_hyperparameters(config: Config, trainer: L.Trainer, before: dict[str, float]) -> None:
    """Configuration in the HParams tab, beside the curves that runs are compared by."""
    metrics = {f"val/{n}": before[n] for n in ("loss", "rewards/accuracies") if n in before}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(flat(config), metrics)
        else:
            logger.log_hyperparams(flat(config))


def _load_best(trainer: L.Trainer, module: DPOModule) -> None:
    """Put the weights with the lowest monitored value back into the policy."""
    for callback in trainer.checkpoint_callbacks:
        best = getattr(callback, "best_model_path", "")
        if getattr(callback, "monitor", None) and best:
            state = torch.load(best, map_location="cpu", weights_only=True)["state_dict"]
            module.load_state_dict(state)
            log.info(f"Exporting the best weights, {Path(best).name}")
            return
    log.warning("export.which=best, but no best state was kept: exporting the last weights")


def _export(config: Config, policy: LoadedModel, run_dir: Path) -> None:
    folder = run_dir / "export"
    if has_adapters(policy.model):
        save_adapters(policy.model, run_dir / "adapters")
        merge_adapters(policy.model)
    if config.export.hf:
        save_hf(policy.model, policy.tokenizer, folder)
    if config.export.native and policy.dialect.generation is not None:
        save_native(policy.model, policy.dialect, folder / native_name(policy.dialect))


def _summary(
    config: Config,
    trainer: L.Trainer,
    module: DPOModule,
    data: PreferenceDataModule,
    policy: LoadedModel,
    before: dict[str, float],
    clock: Clock,
) -> dict[str, Any]:
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


class _Judge:
    """The embedded task's own before and after."""

    def __init__(self, config: Config, policy: LoadedModel) -> None:
        from minimind_dpo.demo.evaluate import held_out_prompts

        self.config = config
        self.policy = policy
        self.prompts = held_out_prompts()
        self.scores: Any = None

    def before(self, metrics: dict[str, float]) -> None:
        """Judge the policy as it starts."""
        with console.status("Sampling and judging answers before training"):
            self.scores = self._evaluate(metrics)

    def after(self, metrics: dict[str, float]) -> dict[str, Any]:
        """Judge the trained policy, print the table, and return its numbers."""
        from minimind_dpo.demo.report import before_after_table

        with console.status("Sampling and judging answers after training"):
            after = self._evaluate(metrics)
        console.print(before_after_table(self.scores, after))
        return {"before": self.scores.numbers(), "after": after.numbers()}

    def _evaluate(self, metrics: dict[str, float]) -> Any:
        from dataclasses import replace

        from minimind_dpo.demo.evaluate import evaluate

        reference = build_policy(self.config, self.policy.tokenizer).model  # type: ignore[arg-type]
        torch.nn.Module.to(reference, self.policy.model.device)
        assert self.policy.tokenizer is not None
        scores = evaluate(
            self.policy.model,
            self.policy.tokenizer,
            self.prompts,
            reference=reference,
            seed=self.config.seed,
        )
        return replace(scores, preference_accuracy=metrics.get("rewards/accuracies"))


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def _quiet(level: str) -> None:
    """Our own messages at the asked level on the first rank; Lightning's only where they matter."""
    shown = getattr(logging, level.upper()) if _is_first_rank() else logging.ERROR
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING, force=True)
    logging.getLogger("minimind_dpo").setLevel(shown)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(max(shown, logging.WARNING))
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
