"""When to validate: at the end of an optimizer step, never inside one.

Lightning counts micro-batches, so that a validation may fall between two of the same step, on
gradients that are half accumulated, and a clock that ranks read apart lets some of them validate
alone. Here one decision is taken at the end of each step and handed to Lightning as
`trainer.val_check_batch`, the micro-batch of the epoch after which it validates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Final

import lightning as L
from lightning.pytorch.callbacks import Callback

from minimind_dpo.training.agreement import ask_highest
from minimind_dpo.training.lightning_seams import ends_step, micro_batches_begun
from minimind_dpo.training.option_values import seconds

_NEVER: Final = 1 << 60


class ValidationSchedule(Callback):
    """Validates every so often; Lightning's own interval has to be 1.0, every epoch.

    Args:
        every: Optimizer steps of the run (int), share of an epoch (float), or time since the last
            validation (`DD:HH:MM:SS`, or units as keywords).
        epochs: Validate in every n-th epoch only; None for all.
    """

    def __init__(self, every: int | float | str | Mapping[str, float], epochs: int | None) -> None:
        self.every = every
        self.epochs = epochs or 1
        self._due = False
        self._last = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell callbacks that ask the trainer whether each epoch has one validation, at its end.

        EarlyStopping and ModelCheckpoint do, and act after validations where it is not so.
        """
        once = isinstance(self.every, float) and self.every == 1.0 and self.epochs == 1
        trainer.val_check_interval = 1.0 if once else 0.5

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A resumed run may have a validation before it; clocks start anew."""
        self._last = time.monotonic()
        self._tell(trainer, self._due)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Decide at the end of a step; before checkpoints, which save ahead of a validation."""
        ends = ends_step(trainer)
        if ends:
            self._due = self._is_due(trainer, batch_idx + 1)
        self._tell(trainer, ends and self._due)

    def state_dict(self) -> dict[str, Any]:
        """Whether a validation follows."""
        return {"due": self._due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with it."""
        self._due = state_dict["due"]

    def _tell(self, trainer: L.Trainer, due: bool) -> None:
        trainer.val_check_batch = micro_batches_begun(trainer) if due else _NEVER

    def _is_due(self, trainer: L.Trainer, micro_batches: int) -> bool:
        if (trainer.current_epoch + 1) % self.epochs:
            return False
        accumulate, in_epoch = trainer.accumulate_grad_batches, trainer.num_training_batches
        if isinstance(self.every, int):
            return trainer.global_step % self.every == 0
        if isinstance(self.every, float):
            between = self.every * math.ceil(in_epoch / accumulate)
            return crosses(math.ceil(micro_batches / accumulate), between)
        over = time.monotonic() - self._last >= seconds(self.every)
        # One answer for all ranks: those that disagree would wait for each other for ever.
        over = bool(ask_highest(trainer, over)())
        if over:
            self._last = time.monotonic()
        return over


def crosses(step: int, between: float) -> bool:
    """Whether a multiple of `between` steps, at least one, lies in (step - 1, step]."""
    between = max(1.0, between)
    # Shares are not exact: 0.1 x 30 is a little more than 3.
    return math.floor(step / between + 1e-9) > math.floor((step - 1) / between + 1e-9)
