"""Points of the curves: means over all ranks, told to Lightning; sums, kept in a checkpoint."""

from __future__ import annotations

from typing import Any, Final

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from minimind_dpo.objective.metrics import MetricSums
from minimind_dpo.training.lightning_seams import ends_step

_SHOWN: Final = ("loss", "rewards/accuracies", "rewards/margins")
"""In the progress bar."""


class LogsSteps(Callback):
    """Runs `DPOModule.finish_step` ahead of the callbacks that save, which Lightning puts last."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """At the end of an optimizer step."""
        if ends_step(trainer):
            pl_module.finish_step()


def means_of_all_ranks(module: L.LightningModule, sums: MetricSums) -> dict[str, float]:
    """Exact means over the pairs of all ranks; to be called on all of them."""
    reduce: Any = module.trainer.strategy.reduce
    return sums.means(lambda flat: reduce(flat.to(module.device), reduce_op="sum"))


def tell_trainer(
    module: L.LightningModule, prefix: str, metrics: dict[str, float], *, logger: bool
) -> None:
    """To `trainer.callback_metrics`, `validate()`'s result and the progress bar."""
    for name, value in metrics.items():
        shown = name in _SHOWN
        number = exact(value)
        module.log(f"{prefix}/{name}", number, prog_bar=shown, logger=logger, batch_size=1)


def exact(value: float) -> Tensor:
    """Lightning rounds numbers to float32, tensors it leaves as they are."""
    return torch.tensor(value, dtype=torch.float64)


def sums_of_all_ranks(module: L.LightningModule, sums: MetricSums) -> dict[str, Any]:
    """Sums since the last point, (ranks, K), for a checkpoint; to be called on all ranks."""
    ranks = sums.flat()[None]
    if module.trainer.world_size > 1:
        ranks = module.trainer.strategy.all_gather(ranks[0].to(module.device))
    return {"names": list(sums.names), "ranks": ranks.cpu()}


def go_on_summing(module: L.LightningModule, sums: MetricSums, kept: dict[str, Any]) -> None:
    """This rank's sums of a checkpoint; on another number of ranks the first takes all."""
    if kept["names"] != list(sums.names):
        return  # another loss, whose run was resumed with changes
    ranks: Tensor = kept["ranks"]
    rank = module.trainer.global_rank
    if len(ranks) == module.trainer.world_size:
        sums.load(ranks[rank])
    elif rank == 0:
        sums.load(ranks.sum(0))
