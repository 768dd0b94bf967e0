"""Random numbers of every rank, kept with a checkpoint and given back.

Fresh runs get different numbers on each rank (seed + rank), so that dropout masks differ; the data
order does not use these generators at all.
"""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


class RandomState(Callback):
    """Saves and restores torch's, NumPy's and Python's generators, on all ranks.

    Args:
        seed: Of a fresh run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._loaded: list[dict[str, Tensor]] = []
        self._trainer: L.Trainer | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remember the trainer: `state_dict` is not told."""
        self._trainer = trainer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The numbers that a checkpoint left off at, or new ones."""
        rank = trainer.global_rank
        if rank < len(self._loaded):
            restore(self._loaded[rank])
        else:
            seed = (self.seed + rank) % 2**32
            torch.manual_seed(seed)
            np.random.seed(seed)
            random.seed(seed)
        self._loaded = []

    def state_dict(self) -> dict[str, Any]:
        """State of every rank; a collective call, as saving is."""
        trainer = self._trainer
        assert trainer is not None
        mine = capture(trainer.strategy.root_device)
        if trainer.world_size == 1:
            return {"ranks": [mine]}
        device = trainer.strategy.root_device
        ranks: list[dict[str, Tensor]] = [{} for _ in range(trainer.world_size)]
        for name, value in mine.items():
            gathered = trainer.strategy.all_gather(value.to(device))
            for rank, part in enumerate(gathered.cpu()):
                ranks[rank][name] = part.clone()
        return {"ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep them until training starts: setting up draws numbers too."""
        self._loaded = state_dict["ranks"]


def capture(device: torch.device) -> dict[str, Tensor]:
    """State of this process's generators as tensors of fixed shapes."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, inner, gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "python": torch.tensor(inner, dtype=torch.int64),
        "python_rest": torch.tensor(
            [version, gauss is not None, gauss or 0.0], dtype=torch.float64
        ),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Tensor]) -> None:
    """Put back what `capture` took."""
    torch.set_rng_state(state["torch"])
    position, has_gauss, cached = state["numpy_rest"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    version, has_next, following = state["python_rest"].tolist()
    inner = tuple(state["python"].tolist())
    random.setstate((int(version), inner, following if has_next else None))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
