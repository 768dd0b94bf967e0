"""Pairs and tokens a second, over all ranks, between logged points."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.training.lightning_seams import ends_step
from minimind_dpo.training.module import DPOModule


class Throughput(Callback):
    """Logs `train/pairs_per_second` and `train/tokens_per_second`; validation is not counted.

    Attributes:
        pairs: Pairs that the run has trained on, over all ranks and launches.
        seconds: Time that training steps took.
    """

    def __init__(self) -> None:
        self.pairs = 0
        self.seconds = 0.0
        self._since = torch.zeros(2, dtype=torch.int64)
        self._interval = 0.0
        self._started = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, unless it runs since the last step (loading data is counted)."""
        if self._started == 0.0:
            self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: PreferenceBatch,
        batch_idx: int,
    ) -> None:
        """Count, and log at the module's own cadence."""
        assert isinstance(pl_module, DPOModule)
        self._since += torch.tensor([batch.num_pairs, batch.num_tokens])
        if not ends_step(trainer):
            return
        self.pairs += batch.window.pairs
        if pl_module.logs_step(trainer.global_step):
            self._stop_clock()
            counts = self._since.to(pl_module.device)
            total = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
            rates = [value / self._interval for value in total]
            pl_module.publish(
                "train", {"pairs_per_second": rates[0], "tokens_per_second": rates[1]}
            )
            self._since.zero_()
            self._interval = 0.0
            self._started = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is not training time."""
        self._stop_clock()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last step's time counts too."""
        self._stop_clock()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on counting from."""
        return {"pairs": self.pairs, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.pairs, self.seconds = state_dict["pairs"], state_dict["seconds"]

    def _stop_clock(self) -> None:
        if self._started:
            elapsed = time.perf_counter() - self._started
            self._interval += elapsed
            self.seconds += elapsed
            self._started = 0.0
