"""One training run, from a checked configuration to exported weights and a summary."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from minimind_dpo import launch
from minimind_dpo.config.schema import Config
from minimind_dpo.config.settle import settle
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.report import print_data_report
from minimind_dpo.demo.callback import DemoJudge
from minimind_dpo.kernels.cpu_matmul import choose_library
from minimind_dpo.kernels.keep_memory import keep_freed_memory
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.objective.check_options import padded_mean_warning, supports_margins
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.options.problem import ConfigError, Problem
from minimind_dpo.run.build import (
    build_callbacks,
    build_datamodule,
    build_loggers,
    build_module,
    build_policy,
    build_reference,
    build_tokenizer,
    build_trainer,
)
from minimind_dpo.run.check_models import check_models
from minimind_dpo.run.exit import supervised
from minimind_dpo.run.export_weights import export_weights, write_model_card
from minimind_dpo.run.extra import build_extra
from minimind_dpo.run.folder import (
    Run,
    claim_run,
    flat,
    make_folder,
    tell_ranks,
    write_config,
    write_json,
)
from minimind_dpo.run.identity import check_identity
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.run.lock_watch import LockWatch
from minimind_dpo.run.out_of_memory import is_out_of_memory, memory_advice
from minimind_dpo.run.plan import RunPlan, print_plan
from minimind_dpo.run.summary import (
    SUMMARY,
    Clock,
    finished,
    set_summary_aside,
    summarise,
    take_best_weights,
    tell_finished,
)
from minimind_dpo.run.verdict import RunVerdict
from minimind_dpo.training.distributed import RankGuard, decided, forget_failure
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.resume.callback import ResumeCheckpoint
from minimind_dpo.training.signals import StopRequest

log = logging.getLogger(__name__)
console = Console()


def fit_from_command_line(config: Config) -> int:
    """Run, and tell people in a sentence what is wrong with their input; the exit code."""

    def explain(error: Exception) -> str | None:
        return memory_advice(config) if is_out_of_memory(error) else None

    guard = config.guard
    return supervised(
        lambda stop, ranks: fit(config, stop, ranks), guard.rank_timeout, guard.stop_grace, explain
    )


def fit(
    config: Config, stop: StopRequest | None = None, ranks: RankGuard | None = None
) -> dict[str, Any]:
    """Train, export and summarise one run.

    Args:
        config: What to run; checked.
        stop: What signal handlers set. Without it signals are taken over while this runs, and
            given back; a second Ctrl-C is the caller's own, which is KeyboardInterrupt.
        ranks: The watch over this run's other processes.

    Returns:
        The content of `summary.json`.

    Raises:
        Stopped: A signal came; the state is saved.
    """
    clock = Clock()
    with contextlib.ExitStack() as ending:
        if stop is None:
            stop = StopRequest(config.guard.stop_grace)
            ending.callback(stop.restore)
            stop.install()  # before Lightning does, whose handlers are not the ones to give back
        return _fit(config, stop, ranks or RankGuard(), ending.enter_context(FolderLock()), clock)


def _fit(
    config: Config, stop: StopRequest, ranks: RankGuard, lock: FolderLock, clock: Clock
) -> dict[str, Any]:
    first = launch.rank() == 0
    config = settle(config)
    _prepare_process(config)
    extra = build_extra("callbacks.extra", config.callbacks.extra, Callback)
    extra_loggers = build_extra("logger.extra", config.logger.extra, Logger)
    tokenizer = build_tokenizer(config)
    run, data, plan, identity, summary = _open_run(config, tokenizer, lock, first)
    if summary is not None:
        return summary
    if run.checkpoint is not None and run.header is not None:
        stop.note_saved(run.checkpoint, run.header.step)
    ranks.folder = run.folder
    chat = data.tokenizer.chat
    policy = build_policy(config, chat.tokenizer)
    log.info(f"Policy: {policy.describe()}")
    reference = build_reference(config, progress=first)
    if config.guard.check_model and run.checkpoint is None:
        decided(lambda: check_models(config, policy, reference, data), config.guard.rank_timeout)
    module = build_module(config, policy, reference, data)
    callbacks = build_callbacks(
        config, policy, chat, run.folder, extra, belongs=identity, stop=stop
    )
    verdict = RunVerdict(config, policy, data, run.folder, stop)
    judge = DemoJudge(policy.model, chat, config.seed)
    callbacks += [verdict, judge] if config.callbacks.judge == "demo" else [verdict]
    callbacks.append(LockWatch(lock))
    loggers = build_loggers(config, run, extra_loggers, first)
    trainer = build_trainer(config, plan, callbacks, loggers, run.folder)
    ranks.watch_children(trainer)
    if first:
        print_plan(plan, config, trainer, policy.model, console)
    log.info(f"Run folder: {run.folder}")
    before = _start(trainer, module, data, run)
    if run.checkpoint is None:
        _log_hyperparameters(config, trainer, before)
    trainer.fit(module, datamodule=data, ckpt_path=run.checkpoint, weights_only=True)
    _validate_after(trainer, module, data)
    last = dict(module.last_val_metrics)
    if config.export.which == "best" and take_best_weights(trainer, module):
        _validate_exported(trainer, module, data)
    if not trainer.is_global_zero:
        return {}
    judgement = verdict.conclude(module.current_step)
    exported: list[str] | None = None
    refusal: CheckpointError | None = None
    try:
        exported = export_weights(config, policy, chat, run.folder)
    except CheckpointError as error:  # the training diverged: its numbers say so
        refusal = error
    summary = summarise(config, trainer, module, data, policy, before, last, clock)
    summary["exported"] = exported
    summary["verdict"] = judgement
    if judge in callbacks:
        summary["demo"] = judge.conclude(before, module.last_val_metrics)
        summary["weights"]["demo"] = module.current_step
    write_model_card(config, policy, summary, run.folder)
    write_json(summary, run.folder / SUMMARY)
    if refusal is not None:
        raise refusal
    log.info(f"Done. Weights: {run.folder / 'export'}  Numbers: {run.folder / SUMMARY}")
    if config.logger.name == "tensorboard":
        log.info(f"Curves: tensorboard --logdir {run.folder}")
    return summary


def _prepare_process(config: Config) -> None:
    """What holds for the whole process: messages, seeds, threads, memory, precision of products."""
    _quiet(config.log_level)
    L.seed_everything(config.seed, workers=False, verbose=False)
    if config.trainer.accelerator in ("cpu", "auto") and not torch.cuda.is_available():
        keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_float32_matmul_precision(config.model.matmul_precision)
    choose_library(config.model.matmul_library)
    if config.loss.reduction == "padded_mean":
        log.warning(padded_mean_warning(config.loss.beta, config.data.max_length - 1))


def _open_run(
    config: Config, tokenizer: PreTrainedTokenizerBase, lock: FolderLock, first: bool
) -> tuple[Run, PreferenceDataModule, RunPlan, dict[str, Any], dict[str, Any] | None]:
    """Read the data, and only when it is sound and fits what is resumed, make the run's folder.

    Returns:
        The run, its data and plan, what its checkpoints belong to, and its summary if it has
        finished.
    """
    timeout = config.guard.rank_timeout
    run = decided(lambda: claim_run(config, lock), timeout)
    data = build_datamodule(config, tokenizer, progress=first)
    data.prepare_data()
    _check_margins(config, data)
    plan = RunPlan.of(config, data)
    identity = check_identity(config, data, run)
    summary = finished(config, run)
    if summary is not None:
        tell_finished(config, run, summary)
        return run, data, plan, identity, summary
    run = decided(lambda: make_folder(run, lock, first), timeout)
    tell_ranks(run)
    if first:
        write_config(config, run.folder)
        forget_failure(run.folder)
        set_summary_aside(run.folder)
        print_data_report(data, console)
    return run, data, plan, identity, None


def _start(
    trainer: L.Trainer, module: DPOModule, data: PreferenceDataModule, run: Run
) -> dict[str, float]:
    """Validation at step 0, or what it was in the run that is resumed."""
    newest = next(c for c in trainer.checkpoint_callbacks if isinstance(c, ResumeCheckpoint))
    if run.header is None:
        newest.start_metrics = _validate_before(trainer, module, data)
    else:
        newest.start_metrics = dict(run.header.start_metrics)
    return newest.start_metrics


def _validate_after(trainer: L.Trainer, module: DPOModule, data: PreferenceDataModule) -> None:
    """Validation at the end, where the last one was before it (trainer.max_steps)."""
    seen = module.last_val_step
    if 0 <= seen < trainer.global_step and len(data.val_rows) and trainer.limit_val_batches:
        trainer.validate(module, datamodule=data, verbose=False)


def _validate_exported(trainer: L.Trainer, module: DPOModule, data: PreferenceDataModule) -> None:
    """The numbers of weights that were taken back; no point of a curve, which has it already."""
    loggers, trainer.loggers = trainer.loggers, []
    try:
        trainer.validate(module, datamodule=data, verbose=False)
    finally:
        trainer.loggers = loggers


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


def _check_margins(config: Config, data: PreferenceDataModule) -> None:
    """Refuse data that asks for margins where the loss has none, before a model is loaded."""
    options = config.loss
    for store in data.stores:
        asking = np.flatnonzero(store.margins)
        if len(asking) and not supports_margins(options):
            kinds = [name for name, loss in LOSSES.items() if "margin" in loss.uses]
            where = f"{len(asking)} pairs ask for a margin ({store.source(int(asking[0]))} first)"
            why = f"has no reward gap that a margin could be taken off, but {where}"
            fix = f"Remove the 'margin' column, or use one of {', '.join(kinds)}."
            raise ConfigError([Problem("loss.type", why, fix, config.loss.type)])


def _log_hyperparameters(config: Config, trainer: L.Trainer, before: dict[str, float]) -> None:
    """Configuration in the HParams tab, beside the curves that runs are compared by."""
    metrics = {f"val/{n}": before[n] for n in ("loss", "rewards/accuracies") if n in before}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(_hyperparameters(config), metrics)
        else:
            logger.log_hyperparams(_hyperparameters(config))


def _hyperparameters(config: Config) -> dict[str, Any]:
    """What runs are told apart by; `config.yaml` has the rest."""
    groups = ("loss.", "optim.", "schedule.", "reference.", "model.", "data.", "seed")
    trainer = ("precision", "max_epochs", "max_steps", "accumulate_grad_batches")
    kept = (*groups, *(f"trainer.{name}" for name in (*trainer, "gradient_clip_val")))
    values = flat(config)
    return {key: values[key] for prefix in kept for key in values if key.startswith(prefix)}


def _quiet(level: str) -> None:
    """Our own messages at the asked level on the first rank; Lightning's only where they matter."""
    shown = getattr(logging, level.upper()) if launch.rank() == 0 else logging.ERROR
    logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.WARNING, force=True)
    logging.getLogger("minimind_dpo").setLevel(shown)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(max(shown, logging.WARNING))
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    # The module reduces its sums over ranks itself, exactly, before it logs their means.
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")
    warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated.*")
    warnings.filterwarnings("ignore", ".*functional.all_gather is deprecated.*")
