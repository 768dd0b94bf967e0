"""How a trainer divides the data: ranks, accumulation, and `limit_*_batches` of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import lightning as L

from minimind_dpo.data.batches.step_plan import StepSampler
from minimind_dpo.data.read.problems import DataError
from minimind_dpo.options.problem import Problem


@dataclass(frozen=True, slots=True)
class Division:
    """How a trainer divides the data; what is read of `lightning.Trainer`, by shorter names."""

    accumulate: int = 1
    world_size: int = 1
    rank: int = 0
    limit_train: int | float | None = None
    limit_val: int | float | None = None

    @classmethod
    def of(cls, trainer: L.Trainer | None) -> Division:
        """A trainer's; one micro-batch a step on one rank where there is none."""
        if trainer is None:
            return cls()
        return cls(
            trainer.accumulate_grad_batches,
            trainer.world_size,
            trainer.global_rank,
            trainer.limit_train_batches,
            trainer.limit_val_batches,
        )

    def limit(self, batches: int, phase: Literal["train", "val"]) -> int | None:
        """The limit of a phase in micro-batches, None for all; refuses a share of less than one."""
        limit = self.limit_train if phase == "train" else self.limit_val
        if limit is None or (isinstance(limit, float) and limit == 1.0):
            return None
        if not isinstance(limit, float):
            return min(limit, batches)
        if limit > 0 and int(batches * limit) == 0:
            place = f"trainer.limit_{phase}_batches={limit:g}"
            why = f"of the {batches} micro-batches of an epoch, this share is less than one"
            advice = f"give a number of micro-batches, or a share of at least {1 / batches:.2g}"
            raise DataError([Problem(place, f"{why}: {advice}")])
        return int(batches * limit)


def too_few(sampler: StepSampler) -> Problem:
    """Fewer pairs than a step has, where cut steps are left out."""
    shape = sampler.shape
    step = (
        f"data.batch_size={shape.batch_size} x trainer.accumulate_grad_batches={shape.accumulate} "
        f"x {shape.world_size} devices"
    )
    return Problem(
        "data.drop_last=true",
        f"the {len(sampler.rows)} training pairs do not fill one optimizer step of "
        f"{shape.pairs_per_step} ({step}), and a step that is not full is left out: lower these, "
        "or set data.drop_last=false",
    )
