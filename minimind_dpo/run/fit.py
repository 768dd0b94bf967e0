"""One training run, from a checked configuration to exported weights and a summary."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from dataclasses import replace
from typing import Any

from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.loggers import Logger
from rich.console import Console

from minimind_dpo import launch
from minimind_dpo.config.schema import Config
from minimind_dpo.config.settle import settle
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.demo.callback import DemoJudge
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.run.batch_size import spread_step
from minimind_dpo.run.build import (
    build_callbacks,
    build_extra,
    build_module,
    build_policy,
    build_reference,
    build_tokenizer,
    build_trainer,
    check_on_device,
)
from minimind_dpo.run.check_models import check_models
from minimind_dpo.run.exit import supervised
from minimind_dpo.run.export import export_weights, write_model_card
from minimind_dpo.run.folder import Run
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.run.loggers import build_loggers, log_settings
from minimind_dpo.run.opening import open_run
from minimind_dpo.run.out_of_memory import is_out_of_memory, memory_advice
from minimind_dpo.run.plan import print_plan
from minimind_dpo.run.process import prepare_process
from minimind_dpo.run.summary import (
    SUMMARY,
    Parts,
    now,
    only_finite,
    summarise,
    take_best_weights,
    write_summary,
)
from minimind_dpo.run.verdict import RunVerdict
from minimind_dpo.training.agreement import decided
from minimind_dpo.training.callbacks.time_limit import TimeLimit
from minimind_dpo.training.distributed import RankGuard, choose_device
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.nan_guard import NotFiniteError
from minimind_dpo.training.option_values import parse_devices
from minimind_dpo.training.resume.callback import ResumeCheckpoint
from minimind_dpo.training.resume.checkpoint_io import DamagedCheckpointError
from minimind_dpo.training.signals import StopRequest

log = logging.getLogger(__name__)
console = Console()


def fit_from_command_line(config: Config) -> int:
    """Run, and tell people in a sentence what is wrong with their input; the exit code."""

    def explain(error: Exception) -> str | None:
        return memory_advice(config) if is_out_of_memory(error) else None

    return supervised(
        lambda stop, ranks: fit(config, stop, ranks), config.guard.rank_timeout, explain
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
    start = now()
    with contextlib.ExitStack() as ending:
        if stop is None:
            stop = StopRequest()
            ending.callback(stop.restore)
            stop.install()  # before Lightning does, whose handlers are not the ones to give back
        if config.trainer.fast_dev_run:
            # All of a run is tried, its folder too; nothing of it stays.
            folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="minimind_dpo-"))
            config = replace(config, run_dir=folder, resume=None)
        return _fit(config, stop, ranks or RankGuard(), ending.enter_context(FolderLock()), start)


def _fit(
    config: Config,
    stop: StopRequest,
    ranks: RankGuard,
    lock: FolderLock,
    start: tuple[float, float],
) -> dict[str, Any]:
    first = launch.rank() == 0
    config = settle(config)
    prepare_process(config)
    if config.trainer.accelerator in ("auto", "gpu", "cuda") and launch.world_size():
        choose_device(parse_devices(config.trainer.devices))
    extra = build_extra("callbacks.extra", config.callbacks.extra, Callback)
    extra_loggers = build_extra("logger.extra", config.logger.extra, Logger)
    tokenizer = build_tokenizer(config)
    run, data, plan, identity, summary = open_run(config, tokenizer, lock, first)
    if summary is not None:
        return summary
    if run.checkpoint is not None and run.header is not None:
        stop.note_saved(run.checkpoint, run.header.step)
    ranks.folder = run.folder
    chat = data.tokenizer.chat
    policy, module = _models(config, run, data, first)
    config, plan = spread_step(config, policy.model, data, run, plan, module.aux_coef)
    callbacks = build_callbacks(
        config, policy, chat, run.folder, extra, belongs=identity, stop=stop
    )
    verdict = RunVerdict(config, policy, data, run.folder, stop)
    judged = config.callbacks.judge == "demo"
    judge = DemoJudge(policy.model, chat, config.seed) if judged else None
    # A second run is kept out where somebody deletes the lock's file.
    watch = LambdaCallback(on_train_batch_end=lambda *_, **__: lock.keep())
    callbacks += [verdict, *([] if judge is None else [judge]), watch]
    loggers = build_loggers(config, run, extra_loggers, first)
    trainer = build_trainer(config, plan, callbacks, loggers, run.folder)
    ranks.watch_children(trainer)
    check_on_device(config, policy, trainer)
    if first:
        print_plan(plan, config, trainer, policy.model, console)
    log.info(f"Run folder: {run.folder}")
    parts = Parts(start, config, run, plan, trainer, module, data, policy, chat, verdict, judge)
    return _run(parts)


def _models(
    config: Config, run: Run, data: PreferenceDataModule, first: bool
) -> tuple[LoadedModel, DPOModule]:
    """The policy, and the module that trains it against the reference."""
    policy = build_policy(config, data.tokenizer.chat.tokenizer)
    log.info(f"Policy: {policy.describe()}")
    reference = build_reference(config, progress=first)
    if config.guard.check_model and run.checkpoint is None:
        decided(lambda: check_models(config, policy, reference, data), config.guard.rank_timeout)
    return policy, build_module(config, policy, reference, data)


def _run(parts: Parts) -> dict[str, Any]:
    """Train, and leave what is to be left; the content of `summary.json` on the first rank."""
    config, trainer, module = parts.config, parts.trainer, parts.module
    before = _start(parts)
    diverged = _train(parts)
    last = dict(module.last_val_metrics)
    best = config.export.which == "best" and diverged is None
    if best and take_best_weights(trainer, module):
        _validate(parts, curve=False)  # it has these weights already
    summary: dict[str, Any] = {}
    if trainer.is_global_zero:
        summary = summarise(parts, before, last)
        diverged = _leave(parts, summary, diverged)
    if diverged is not None:
        raise diverged
    return summary


def _train(parts: Parts) -> NotFiniteError | None:
    """Train and validate what that gives; why there is nothing to export, if it diverged."""
    trainer, module, data = parts.trainer, parts.module, parts.data
    checkpoint = parts.run.checkpoint
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except NotFiniteError as error:
        return error
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not module.restores or type(error).__module__.startswith("minimind_dpo."):
            raise
        why = " ".join(str(error).split())[:300]
        raise DamagedCheckpointError(
            f"{checkpoint} cannot be restored here: {type(error).__name__}: {why}. It is of "
            "another model, or of another version of this program: start anew, without resume"
        ) from error
    if 0 <= module.last_val_step < trainer.global_step:  # by trainer.max_steps
        _validate(parts)
    return module.divergence()


def _leave(
    parts: Parts, summary: dict[str, Any], diverged: NotFiniteError | None
) -> NotFiniteError | None:
    """Write what a run leaves, its summary last, and say how it ended.

    Returns:
        Why there is no export, if it diverged.
    """
    config, folder, step = parts.config, parts.run.folder, parts.module.current_step
    if diverged is None:
        summary["verdict"] = parts.verdict.conclude(step, parts.trainer.loggers)
        try:
            summary["exported"] = export_weights(config, parts.policy, parts.chat, folder)
        except CheckpointError as error:  # too large for the half precision of a native file
            diverged = NotFiniteError(f"the run diverged, it is not exported: {error}")
    if diverged is not None:
        write_summary(config, folder, only_finite({**summary, "diverged": str(diverged)}))
        return diverged
    if parts.judge is not None:
        metrics = parts.module.last_val_metrics
        summary["demo"] = parts.judge.conclude(summary["val_before"], metrics)
        summary["weights"]["demo"] = step
    write_model_card(config, parts.policy, summary, folder)
    write_summary(config, folder, summary)
    _tell_end(parts)
    return None


def _tell_end(parts: Parts) -> None:
    """Where the results are; before, whether the run ended before its last step."""
    config, folder = parts.config, parts.run.folder
    if config.trainer.fast_dev_run:
        log.info("Done: every part works. Of a trial (trainer.fast_dev_run) no file of it stays")
        return
    steps, total = parts.trainer.global_step, parts.plan.steps
    of = "" if total is None else f" of {total}"
    callbacks: list[Callback] = parts.trainer.callbacks  # type: ignore[attr-defined]
    if total is not None and steps >= total:
        pass
    elif any(isinstance(callback, TimeLimit) and callback.reached for callback in callbacks):
        how = f"Continue it: the same command with resume=auto run_dir={folder}"
        log.info(f"trainer.max_time ended training after step {steps}{of}. {how}")
    else:
        log.info(f"Training ended after step {steps}{of}: a callback asked for it")
    log.info(f"Done. Weights: {folder / 'export'}  Numbers: {folder / SUMMARY}")
    if config.logger.name == "tensorboard":
        log.info(f"Curves: tensorboard --logdir {folder}")
    for advice in parts.verdict.advice:
        log.info(advice)


def _start(parts: Parts) -> dict[str, float]:
    """Validation at step 0, or what it was in the run that is resumed."""
    trainer, module, header = parts.trainer, parts.module, parts.run.header
    newest = next(c for c in trainer.checkpoint_callbacks if isinstance(c, ResumeCheckpoint))
    if header is None:
        log_settings(trainer.loggers, parts.config, bool(parts.plan.val_pairs))
        parts.data.trainer = trainer
        parts.data.setup("validate")
        _validate(parts)
        newest.start_metrics = dict(module.last_val_metrics)
    else:
        newest.start_metrics = dict(header.start_metrics)
    return newest.start_metrics


def _validate(parts: Parts, curve: bool = True) -> None:
    """Validate the weights as they are, where it is not off; a point of the curves if `curve`."""
    trainer, data = parts.trainer, parts.data
    if not len(data.val_rows) or trainer.limit_val_batches == 0:
        return
    loggers = trainer.loggers
    trainer.loggers = loggers if curve else []
    try:
        trainer.validate(parts.module, datamodule=data, verbose=False)
    finally:
        trainer.loggers = loggers
