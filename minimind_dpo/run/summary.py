"""The numbers that a finished run leaves, and whether a run has finished."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import lightning as L

from minimind_dpo import os_errors
from minimind_dpo.config.schema import Config
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.data.tokenize.chat import Chat
from minimind_dpo.demo.callback import DemoJudge
from minimind_dpo.disk import read_json
from minimind_dpo.models.load import LoadedModel
from minimind_dpo.report.run import write_run_report
from minimind_dpo.run.folder import Run, versions, write_json
from minimind_dpo.run.plan import RunPlan
from minimind_dpo.run.verdict import RunVerdict
from minimind_dpo.training.callbacks.throughput import Throughput
from minimind_dpo.training.callbacks.weights_changed import WeightsChanged
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.resume.best import BestCheckpoint
from minimind_dpo.training.resume.checkpoint_io import Header, read_checkpoint

log = logging.getLogger(__name__)

SUMMARY: Final = "summary.json"
EARLIER_SUMMARY: Final = "summary.earlier.json"
"""Of the time before a run was taken further."""
_SIDES: Final = ("train", "val")


Seconds: TypeAlias = tuple[float, float]
"""By the clock, and of the CPU."""


def now() -> Seconds:
    """Wall and CPU seconds of this process, over all threads."""
    return time.perf_counter(), time.process_time()


def finished(config: Config, run: Run) -> dict[str, Any] | None:
    """The summary of a run that has nothing left to do; None where there is something.

    A state at the end of training is not enough: the run may have ended before its weights were
    exported. The summary is written last, so one of this very step says that they were.
    """
    if run.header is None or not _bounds(config, run.header):
        return None
    summary = read_json(run.folder / SUMMARY)
    if not isinstance(summary, dict) or summary.get("steps") != run.header.step:
        return None
    for group in map(summary.get, _SIDES):
        numbers = isinstance(group, dict) and [isinstance(x, int | float) for x in group.values()]
        if numbers is False or not all(numbers):
            return None
    exported = summary.get("exported")
    whole = isinstance(exported, list) and all(_holds(run.folder / str(n)) for n in exported)
    return summary if whole else None


def _holds(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def set_summary_aside(folder: Path) -> None:
    """A run that goes on has no summary until it ends: the earlier one would pass for its own."""
    path = folder / SUMMARY
    if path.is_file():
        os.replace(path, path.with_name(EARLIER_SUMMARY))


def tell_finished(config: Config, run: Run, summary: dict[str, Any]) -> None:
    """Say that there is nothing to do, what the run has reached, and how to go on."""
    assert run.header is not None
    names = ("loss", "rewards/accuracies", "rewards/margins")
    reached = [
        f"{side}/{name} {summary[side][name]:.4g}"
        for side in _SIDES
        for name in names
        if name in summary[side]
    ]
    bounds = " and ".join(_bounds(config, run.header))
    log.info(
        f"The run in {run.folder} has finished: {summary['steps']} steps, {', '.join(reached)}. "
        f"Nothing was written. To train it further, raise {bounds}; "
        "for another run, name another run_dir"
    )


def _bounds(config: Config, header: Header) -> list[str]:
    """Which bounds of training a state has reached."""
    trainer = config.trainer
    bounds = {
        f"trainer.max_steps={trainer.max_steps}": (trainer.max_steps, header.step),
        f"trainer.max_epochs={trainer.max_epochs}": (trainer.max_epochs, header.epochs),
    }
    return [name for name, (most, done) in bounds.items() if most is not None and 0 < most <= done]


def take_best_weights(trainer: L.Trainer, module: DPOModule) -> bool:
    """Put the weights with the best monitored value into the policy; whether others were there.

    The last validation comes after training and saves no state: its weights are the policy's own.
    """
    kept = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
    if not kept or not kept[0].best_model_path:
        log.warning("export.which=best, but no best state was kept: exporting the last weights")
        return False
    best, score = kept[0], float(kept[0].best_model_score or float("nan"))
    last = module.last_val_metrics.get(str(best.monitor).removeprefix("val/"), float("nan"))
    if last < score if best.mode == "min" else last > score:
        log.info(f"The last weights are the best: {best.monitor} {last:.4f}")
        return False
    state = read_checkpoint(Path(best.best_model_path))
    module.load_state_dict(state["state_dict"])
    module.weights_of_step = state["global_step"]
    log.info(f"Exporting the best weights, {Path(best.best_model_path).name}: {score:.4f}")
    return True


def only_finite(value: Any) -> Any:
    """Plain values without NaN and infinity, which JSON does not know: null in their place."""
    if isinstance(value, dict):
        return {key: only_finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [only_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of, and `now()` when it began."""

    start: Seconds
    config: Config
    run: Run
    plan: RunPlan
    trainer: L.Trainer
    module: DPOModule
    data: PreferenceDataModule
    policy: LoadedModel
    chat: Chat
    verdict: RunVerdict
    judge: DemoJudge | None


def summarise(parts: Parts, before: dict[str, float], last: dict[str, float]) -> dict[str, Any]:
    """The content of `summary.json`, but for the embedded task's table.

    Args:
        parts: With the weights that are exported, after training.
        before: Validation before training.
        last: Validation of the last weights.
    """
    trainer, module = parts.trainer, parts.module
    wall, cpu = now()
    callbacks = {type(c): c for c in trainer.callbacks}  # type: ignore[attr-defined]
    throughput = callbacks[Throughput]
    changed = callbacks.get(WeightsChanged)
    if changed is not None:
        changed.measure(trainer, module)  # a run resumed at its end has not trained
    return {
        "name": parts.config.name,
        "train": module.last_train_metrics,
        "val": module.last_val_metrics,
        "val_before": before,
        "val_last": last,
        "weights": _steps_of(trainer, module, before, last),
        "pairs_seen": throughput.pairs,
        "steps": trainer.global_step,
        # Lightning's own number is another one where a run is resumed at its end.
        "epochs": math.ceil(trainer.global_step / parts.plan.steps_per_epoch),
        "wall_seconds": wall - parts.start[0],
        "cpu_seconds": cpu - parts.start[1],
        "training_seconds": throughput.seconds,
        "pairs_per_second": throughput.pairs / max(throughput.seconds, 1e-9),
        "weights_changed": getattr(changed, "share", None),
        "bad_steps": module.guard.total,
        **_made_of(parts),
    }


def _made_of(parts: Parts) -> dict[str, Any]:
    """Model, data and program."""
    data, dialect = parts.data, parts.policy.dialect
    assert data.train_store is not None
    return {
        "recognised": {
            "dialect": dialect.name,
            "class": dialect.class_name,
            "parameters": dialect.num_parameters,
        },
        "data": {
            "train": data.train_store.report,
            "train_pairs": len(data.train_rows),
            "val_pairs": len(data.val_rows),
        },
        "versions": versions(),
        "seed": parts.config.seed,
    }


def _steps_of(
    trainer: L.Trainer, module: DPOModule, before: dict[str, float], last: dict[str, float]
) -> dict[str, int]:
    """Optimizer steps after which the weights were that each group of numbers is of."""
    found = {"export": module.current_step}
    if module.last_train_metrics:
        found["train"] = module.last_train_step
    if module.last_val_metrics:
        found["val"] = module.last_val_step
    if before:
        found["val_before"] = 0
    if last:
        found["val_last"] = trainer.global_step
    return found


def write_summary(config: Config, folder: Path, summary: dict[str, Any]) -> None:
    """The run's page, then `summary.json`: a run that has it has all else, wherever it was stopped.

    A page that cannot be made fails no run, whose results are all there.
    """
    try:
        log.info(f"Report: {write_run_report(folder, config.report.language, summary)}")
    except Exception as error:
        sentence = os_errors.explain(error)
        why = sentence or os_errors.first_line(error)
        log.error(f"There is no report: {why}", exc_info=None if sentence else error)
    write_json(summary, folder / SUMMARY)
