"""`trainer.max_time`, looked at between optimizer steps."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from minimind_dpo.training.agreement import ask_highest
from minimind_dpo.training.lightning_seams import ends_step


class TimeLimit(Callback):
    """Ends training after some time, at the end of a step; each launch of a run has all of it.

    Lightning's own Timer ends it between two micro-batches of a step as well, whose gradients are
    then lost.

    Args:
        seconds: From the first step of this launch.

    Attributes:
        reached: Whether it has ended this launch.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reached = False
        self._started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Ask all ranks alike to stop; the first clock to reach the limit decides."""
        if not ends_step(trainer):
            return
        over = time.monotonic() - self._started >= self.seconds
        self.reached = bool(ask_highest(trainer, over)())
        trainer.should_stop = trainer.should_stop or self.reached
