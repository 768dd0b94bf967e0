"""Report and export counted in micro-batches, as the original notebook does."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from minimind_dpo.models.export import native_name, save_native
from minimind_dpo.models.minimind.recognise import Dialect
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.optim import notebook_factor

log = logging.getLogger(__name__)


class MicroBatchReport(Callback):
    """A line every `log_every` micro-batches from 0, a native file every `export_every`.

    Args:
        dialect: The policy's, which names the native file.
        folder: The run's folder; the file goes to `export/`.
        log_every: Micro-batches between lines; 0 for none.
        export_every: Micro-batches between files; 0 for none.
    """

    def __init__(self, dialect: Dialect, folder: Path, log_every: int, export_every: int) -> None:
        self.dialect = dialect
        self.folder = folder
        self.log_every = log_every
        self.export_every = export_every
        self._started = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock that the minutes left in the epoch are told by."""
        self._started = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Report this micro-batch and export where it is due."""
        assert isinstance(pl_module, DPOModule)
        if self.log_every and batch_idx % self.log_every == 0:
            self._report(trainer, pl_module, outputs, batch_idx)
        due = bool(self.export_every) and (batch_idx + 1) % self.export_every == 0
        if due and trainer.is_global_zero and self.dialect.generation is not None:
            path = self.folder / "export" / native_name(self.dialect)
            save_native(pl_module.policy, self.dialect, path)

    def _report(self, trainer: L.Trainer, module: DPOModule, outputs: Any, batch_idx: int) -> None:
        loss: Tensor = outputs["loss"] if isinstance(outputs, dict) else outputs
        # Lightning has divided by the accumulation; the pairs of a whole window weigh the same.
        value = float(loss.detach()) * trainer.accumulate_grad_batches
        batches = int(trainer.num_training_batches)
        micro_batch = trainer.current_epoch * batches + batch_idx
        lr = module.optimizer_options.lr * notebook_factor(micro_batch, module.micro_batches)
        minutes = (time.monotonic() - self._started) / (batch_idx + 1) * (batches - batch_idx) / 60
        log.info(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  micro-batch "
            f"{batch_idx}/{batches}  loss {value:.3f}  lr {lr:.12f}  {minutes:.0f} min left"
        )
        for logger in trainer.loggers:
            logger.log_metrics(
                {"micro_batch/loss": value, "micro_batch/learning_rate": lr}, step=micro_batch
            )
