"""Progress a person can read: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar

from minimind_dpo.training.module import DPOModule

SHOWN = {"loss": "loss", "rewards/accuracies": "acc", "rewards/margins": "margin"}
"""Metrics that are shown, and their short names."""
_SIGNS = "•━"
"""What Lightning's bar draws with; some terminals cannot (GBK, latin-1)."""


def make_progress(kind: str) -> Callback:
    """`auto` (rich in a terminal, else plain), `rich`, `plain` or `none`."""
    if kind == "auto":
        terminal = sys.stderr.isatty() or sys.stdout.isatty()
        kind = "rich" if terminal and _can_print(_SIGNS) else "plain"
    if kind == "rich":
        return RichBar()
    return PlainLines(silent=kind == "none")


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


class RichBar(RichProgressBar):
    """Lightning's rich bar with DPO's numbers beside it, and a line for each validation."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        """The newest point of training, its learning rate, and the newest validation."""
        assert isinstance(pl_module, DPOModule)
        train, val = pl_module.last_train_metrics, pl_module.last_val_metrics
        numbers = {short: f"{train[name]:.3f}" for name, short in SHOWN.items() if name in train}
        if "learning_rate" in train:
            numbers["lr"] = f"{train['learning_rate']:.3g}"
        names = ("loss", "rewards/accuracies")
        return numbers | {f"val {SHOWN[n]}": f"{val[n]:.3f}" for n in names if n in val}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lightning counts epochs from 0 up to the last but one."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
            description = f"Epoch {trainer.current_epoch + 1}{of}"
            self.progress.update(self.train_progress_bar_id, description=description)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the validation's numbers above the bar."""
        super().on_validation_end(trainer, pl_module)
        assert isinstance(pl_module, DPOModule)
        if self.progress is not None and pl_module.last_val_metrics:
            self.progress.console.print(_validation(pl_module), highlight=False)


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
            print(_validation(pl_module), flush=True)

    def _print_step(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, DPOModule)
        step = module.last_train_step
        if self.silent or step <= self._printed:
            return
        self._printed = step
        accumulate = trainer.accumulate_grad_batches
        total = trainer.estimated_stepping_batches
        left = ""
        if total != float("inf"):
            per_step = (time.monotonic() - self._started) / max(1, step - self._first_step)
            left = f"  {_clock((total - step) * per_step)} left"
        of = "" if total == float("inf") else f"/{int(total)}"
        # Not Lightning's own number, which is that of the next epoch at the end of one.
        epoch = math.ceil(step / math.ceil(trainer.num_training_batches / accumulate))
        print(
            f"epoch {epoch}  step {step}{of}  {_numbers(module.last_train_metrics)}  lr "
            f"{module.last_train_metrics['learning_rate']:.3g}{left}",
            flush=True,
        )


def _validation(module: DPOModule) -> str:
    return f"validation at step {module.last_val_step}: {_numbers(module.last_val_metrics)}"


def _numbers(metrics: dict[str, float]) -> str:
    shown = "  ".join(f"{s} {metrics[n]:.4f}" for n, s in SHOWN.items() if n in metrics)
    return shown or "no step was taken"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
