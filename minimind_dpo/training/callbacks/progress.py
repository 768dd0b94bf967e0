"""Progress a person can read: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar

from minimind_dpo.training.module import DPOModule

SHOWN = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin"}
"""Metrics beside the bar, and their short names."""


def make_progress(kind: str) -> Callback:
    """`auto` (rich in a terminal, else plain), `rich`, `plain` or `none`."""
    if kind == "auto":
        kind = "rich" if sys.stderr.isatty() or sys.stdout.isatty() else "plain"
    if kind == "rich":
        return RichBar()
    return PlainLines(silent=kind == "none")


class RichBar(RichProgressBar):
    """Lightning's rich bar with DPO's numbers beside it."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        """Loss, accuracy and margin of the newest step logged, and validation accuracy."""
        assert isinstance(pl_module, DPOModule)
        shown = {s: pl_module.last_train_metrics.get(n) for n, s in SHOWN.items()}
        shown["val"] = pl_module.last_val_metrics.get("rewards/accuracies")
        return {name: f"{value:.3f}" for name, value in shown.items() if value is not None}


class PlainLines(ProgressBar):
    """One line a logged step and one a validation, for logs and pipes."""

    def __init__(self, silent: bool = False) -> None:
        super().__init__()
        self.silent = silent
        self._started = 0.0
        self._first_step = 0
        self._printed = 0

    def disable(self) -> None:
        """Called by Lightning on ranks other than 0."""
        self.silent = True

    def enable(self) -> None:
        """Called by Lightning where the bar is wanted again."""
        self.silent = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock that time left is told by."""
        self._started = time.monotonic()
        self._first_step = self._printed = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Print the step logged last; callbacks run before the module's own hook at its end."""
        self._print_step(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the step before its validation."""
        self._print_step(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the last logged step."""
        self._print_step(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the validation's numbers."""
        assert isinstance(pl_module, DPOModule)
        if not self.silent and pl_module.last_val_metrics:
            numbers = _numbers(pl_module.last_val_metrics)
            print(f"validation at step {pl_module.last_val_step}: {numbers}", flush=True)

    def _print_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DPOModule)
        step = module.last_train_step
        if self.silent or step <= self._printed:
            return
        self._printed = step
        total = trainer.estimated_stepping_batches
        left = ""
        if total != float("inf"):
            per_step = (time.monotonic() - self._started) / max(1, step - self._first_step)
            left = f"  {_clock((total - step) * per_step)} left"
        of = "" if total == float("inf") else f"/{int(total)}"
        print(
            f"epoch {trainer.current_epoch + 1}  step {step}{of}  "
            f"{_numbers(module.last_train_metrics)}  lr "
            f"{module.last_train_metrics['learning_rate']:.3g}{left}",
            flush=True,
        )


def _numbers(metrics: dict[str, float]) -> str:
    return "  ".join(f"{s} {metrics[n]:.4f}" for n, s in SHOWN.items() if n in metrics)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
