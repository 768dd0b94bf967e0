"""Everything that is read or replaced inside Lightning: a new version of it is this file to read.

No other file touches a private member of Lightning. What is said of its loops holds from 2.6 on:
they count micro-batches as ready, started, processed and completed, and a hook of a micro-batch
runs between `processed` and `completed`.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

Progress = dict[str, Any]
"""State of Lightning's fit loop, as a checkpoint has it."""


def ends_step(trainer: L.Trainer) -> bool:
    """Whether the optimizer moves at the end of the micro-batch in progress."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def validation_follows(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after the micro-batch whose hooks run."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    validates = sum(trainer.num_val_batches) > 0
    return validates and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def training_ends(trainer: L.Trainer) -> bool:
    """Whether no step follows the one whose hooks run: steps or micro-batches are over."""
    return trainer.fit_loop.epoch_loop._is_training_done


def micro_batches_begun(trainer: L.Trainer) -> int:
    """Of this epoch, the one in progress included."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def loop_state(trainer: L.Trainer) -> Progress:
    """Where the loops stand; a copy."""
    return deepcopy(trainer.fit_loop.state_dict())


def put_loops_back(trainer: L.Trainer, state: Progress) -> None:
    """Let the loops stand where they stood; a state can be saved then, but nothing trained."""
    trainer.fit_loop.load_state_dict(state)


def complete_micro_batch(loops: Progress, validates: bool, validation_due: bool) -> None:
    """Turn counters taken in the hooks of a micro-batch into those just after it.

    A validation that is due is marked as begun and not finished; Lightning then runs it from its
    first batch. One that is done it passes over, by itself.

    Args:
        loops: `loop_state`, or what a checkpoint has of it; changed in place.
        validates: Whether a validation follows this micro-batch.
        validation_due: Whether it is not done yet.
    """
    batches = loops["epoch_loop.batch_progress"]
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    if validation_due:
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation = loops["epoch_loop.val_loop.batch_progress"]
        validation |= {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
    elif not validates:  # else Lightning counts this step when it comes to the validation
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def micro_batches_completed(loops: Progress) -> tuple[int, int]:
    """Of the run and of the epoch in progress."""
    batches = loops["epoch_loop.batch_progress"]
    return batches["total"]["completed"], batches["current"]["completed"]


def count_micro_batches_anew(loops: Progress, total: int, current: int) -> None:
    """Set what `micro_batches_completed` gives; in place."""
    batches = loops["epoch_loop.batch_progress"]
    for counts, value in ((batches["total"], total), (batches["current"], current)):
        counts |= dict.fromkeys(("ready", "started", "processed", "completed"), value)


def keep_signals_from(trainer: L.Trainer) -> None:
    """Spare ranks a question before each micro-batch, whether Lightning's own handler saw SIGTERM.

    Its answer would be waited for on the device; `StopRequest` has replaced that handler.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def take_started_ranks(trainer: L.Trainer) -> list[Any]:
    """The processes of further ranks that Lightning's launcher has started since the last call.

    Its own observer watches this very list, and kills this process five seconds after a child has
    ended, whatever it is doing. The launcher makes the list anew when it starts the ranks.
    """
    launcher: Any = trainer.strategy.launcher
    started: list[Any] = getattr(launcher, "procs", [])
    ranks = list(started)
    started.clear()
    return ranks


def rank_timeout(trainer: L.Trainer) -> timedelta:
    """How long ranks wait for each other."""
    timeout = getattr(trainer.strategy, "_timeout", None)
    return torch.distributed.constants.default_pg_timeout if timeout is None else timeout


def gradient_scale(trainer: L.Trainer) -> Tensor | None:
    """What losses are multiplied by under 16-mixed, a scalar on the device; None elsewhere."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return None if scaler is None else scaler._scale


def allows_fused(trainer: L.Trainer) -> bool:
    """Whether a fused optimizer's gradients are unscaled before they are clipped.

    Lightning's own 16-mixed leaves that to the optimizer, whose gradients nobody can clip then.
    """
    plugin = trainer.precision_plugin
    return getattr(plugin, "scaler", None) is None or isinstance(plugin, GuardedHalfPrecision)


class GuardedHalfPrecision(MixedPrecision):
    """16-mixed on CUDA in which the host never waits.

    Gradients are unscaled, then clipped and judged by the module's `configure_gradient_clipping`,
    whose verdict, `found_inf` on the device, the fused optimizer reads. `GradScaler.step` would
    ask the device for it.
    """

    def __init__(self, device: str = "cuda", scaler: torch.amp.GradScaler | None = None) -> None:
        super().__init__("16-mixed", device, scaler)

    def optimizer_step(  # type: ignore[override]
        self,
        optimizer: Any,
        model: L.LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """Backward, unscale, clip and judge, step, and a new scale."""
        assert self.scaler is not None
        result = closure()
        scaled_step(self.scaler, optimizer, lambda: self._after_closure(model, optimizer), **kwargs)
        return result


def scaled_step(
    scaler: torch.amp.GradScaler, optimizer: Any, judge: Callable[[], Any], **kwargs: Any
) -> None:
    """Unscale gradients, let `judge` clip them and set `found_inf`, step, and find a new scale."""
    scaler.unscale_(optimizer)
    judge()
    optimizer.step(**kwargs)
    scaler.update()


def half_precision_plugin(precision: str, on_cuda: bool) -> MixedPrecision | None:
    """`GuardedHalfPrecision` for 16-mixed on CUDA; None where Lightning's own does."""
    guarded = precision == "16-mixed" and on_cuda and torch.cuda.is_available()
    return GuardedHalfPrecision() if guarded else None
