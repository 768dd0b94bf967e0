"""The share of weights that differ from the start.

In float32 1.0 - 1.1e-8 is 1.0: at learning rates of 1e-8 some weights cannot move, and nothing
else would say so.
"""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from minimind_dpo.training.module import DPOModule


class WeightsChanged(Callback):
    """Logs `train/weights_changed`, in [0, 1], at each validation and at the end.

    Attributes:
        share: The newest value.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._step = 0
        self._start: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Keep the start, on one rank, before a checkpoint is restored.

        It stays in main memory, page-locked where the run is on CUDA: it takes none of a GPU's.
        """
        assert isinstance(pl_module, DPOModule)
        if trainer.is_global_zero and not self._start:
            on_cuda = trainer.strategy.root_device.type == "cuda"
            self._start = {
                name: _aside(parameter.detach().cpu(), on_cuda)
                for name, parameter in pl_module.policy.named_parameters()
                if parameter.requires_grad
            }

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure beside each validation that has trained something."""
        self.measure(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure what the run has done."""
        self.measure(trainer, pl_module)

    def measure(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measure after this step, unless that is done."""
        assert isinstance(module, DPOModule)
        if not trainer.is_global_zero or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        current = dict(module.policy.named_parameters())
        counts = [
            torch.count_nonzero(
                current[name].detach() != start.to(module.device, non_blocking=True)
            )
            for name, start in self._start.items()
        ]
        # One read of the device for all tensors.
        changed = int(torch.stack(counts).sum()) if counts else 0
        self.share = changed / max(1, sum(start.numel() for start in self._start.values()))
        module.publish("train", {"weights_changed": self.share})


def _aside(weights: Tensor, on_cuda: bool) -> Tensor:
    return weights.pin_memory() if on_cuda else weights.clone()
