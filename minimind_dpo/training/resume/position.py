"""What a resumed run needs besides weights: where it stands, and whether it is the same run.

A step may be spread over other devices than before: as long as it holds the same pairs, a
position in optimizer steps is exact, and micro-batches are counted anew from it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import lightning as L

from minimind_dpo.data.batches.step_plan import carry_over
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.training.lightning_seams import (
    Progress,
    count_micro_batches_anew,
    loop_state,
    micro_batches_begun,
    micro_batches_completed,
    put_loops_back,
)
from minimind_dpo.training.resume.random_state import capture, restore


class ResumeMismatchError(ValueError):
    """A checkpoint belongs to another run than the one that would go on from it."""


class EndOfStep:
    """Where a run stood at the end of an optimizer step: what micro-batches after it change.

    Weights, optimizer and metrics stay as they were until the next step ends, so that a state saved
    after `put_back` is that of this moment. To be made in the hooks that end the step.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._loops = loop_state(trainer)
        self._random = capture(trainer.strategy.root_device)

    def put_back(self, trainer: L.Trainer) -> None:
        """Undo the micro-batches of a step that was begun; the run has to end after it."""
        put_loops_back(trainer, self._loops)
        restore(self._random)


def epochs_done(trainer: L.Trainer) -> int:
    """Whole epochs of training; one whose last micro-batch is in its hooks is whole."""
    whole = micro_batches_begun(trainer) >= trainer.num_training_batches
    return trainer.current_epoch + int(whole)


def step_shape(trainer: L.Trainer) -> dict[str, int]:
    """How an optimizer step is spread: what positions in micro-batches refer to."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, PreferenceDataModule):
        return {}
    sampler = data.train_sampler()
    return {**asdict(sampler.shape), "epoch_batches": len(sampler)}


def fit_to_shape(
    loops: Progress, old: dict[str, int], new: dict[str, int], *, any_place: bool = False
) -> None:
    """Count the micro-batches of `loops` anew where a step is spread in another way.

    Args:
        loops: `fit_loop`'s state dict; changed in place.
        old: `step_shape` of the run that saved it.
        new: `step_shape` of this run.
        any_place: Take the end of a step before the position where none is exactly there.

    Raises:
        ResumeMismatchError: No step ends at the position.
    """
    if old == new or not old or not new:
        return
    total, done = micro_batches_completed(loops)
    position, exact = carry_over(done, old, new)
    if not exact and not any_place:
        raise ResumeMismatchError(
            f"the state was made with {_spread(old)}, and no step ends at its pair with "
            f"{_spread(new)}. Choose data.batch_size, trainer.accumulate_grad_batches and "
            "trainer.devices with the same product, or repeat part of a step with "
            "resume_with_changes=true"
        )
    epochs = (total - done) // max(1, old["epoch_batches"])
    count_micro_batches_anew(loops, epochs * new["epoch_batches"] + position, position)


def _spread(shape: dict[str, int]) -> str:
    return f"{shape['batch_size']} x {shape['accumulate']} x {shape['world_size']} pairs a step"


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """What a checkpoint was made with and this run has otherwise, for people.

    Args:
        saved: What the checkpoint belongs to: {what: {detail: value}}.
        current: The same of this run.
    """
    found = []
    for what in sorted({*saved, *current}):
        old, new = dict(saved.get(what, {})), dict(current.get(what, {}))
        if what == "data" and saved.get("tokenizer") != current.get("tokenizer"):
            # Fingerprints of tokenised data: they differ because of the tokenizer.
            for name in ("train", "validation"):
                old.pop(name, None)
                new.pop(name, None)
        for detail in sorted({*old, *new}):
            if old.get(detail) != new.get(detail):
                was, now = _shown(old.get(detail)), _shown(new.get(detail))
                found.append(f"{what}: {detail} was {was}, is now {now}")
    return found


def check_belongs(saved: dict[str, Any], current: dict[str, Any], path: str) -> None:
    """Refuse a checkpoint of another run.

    Raises:
        ResumeMismatchError: Naming every difference.
    """
    found = differences(saved, current)
    if found:
        raise ResumeMismatchError(
            f"{path} was made with something else than this run:\n  " + "\n  ".join(found) + "\n"
            "Use what it was made with, start anew without resume, or go on all the same with "
            "resume_with_changes=true"
        )


def use_new_learning_rate(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let a changed optim.lr count: schedulers restore the rate that a checkpoint was made with."""
    options = getattr(module, "optimizer_options", None)
    if options is None:
        return
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        rates = getattr(scheduler, "base_lrs", None)
        if not rates or all(rate == options.lr for rate in rates):
            continue
        scale = options.lr / rates[0]
        scheduler.base_lrs = [rate * scale for rate in rates]
        for group in scheduler.optimizer.param_groups:
            group["initial_lr"] = group["initial_lr"] * scale
            group["lr"] = group["lr"] * scale


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
