"""Refuse optimizer steps that are not finite, name the pairs, and stop when it does not pass.

The gradient norm is the same on every rank after DDP's reduction, so all ranks decide alike.
A gradient scaler's own overflows under 16-mixed are its business and are not counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Final

import lightning as L
import torch
from torch import Tensor

log = logging.getLogger(__name__)


_ADVICE: Final = (
    "Lower optim.lr, use trainer.precision=32-true or bf16-mixed, and look at the pairs named above"
)


class NotFiniteError(RuntimeError):
    """Too many optimizer steps in a row had a loss or gradient that is not finite."""


class StepGuard:
    """Counts and reports bad steps.

    Args:
        max_bad_steps: Stop after this many in a row.
        sources: Names a row of the token store for people, `dpo.jsonl:17`; rows as numbers
            where None.

    Attributes:
        total: Bad steps so far.
        in_a_row: Bad steps since the last good one.
    """

    def __init__(
        self, max_bad_steps: int = 10, sources: Callable[[int], str] | None = None
    ) -> None:
        self.max_bad_steps = max_bad_steps
        self.sources = sources or (lambda row: f"row {row}")
        self.total = 0
        self.in_a_row = 0
        self._window: list[tuple[Tensor, Tensor]] = []

    def watch(self, pair_index: Tensor, losses: Tensor) -> None:
        """Remember a micro-batch's pairs and losses until the step is decided."""
        self._window.append((pair_index, losses.detach()))

    def refuses(self, trainer: L.Trainer, grad_norm: float) -> bool:
        """Whether the step must not be taken; the same answer on every rank.

        Args:
            trainer: Asked for the other ranks' losses and for the gradient scaler.
            grad_norm: Norm of all gradients of the step, after unscaling.
        """
        finite = all(bool(losses.isfinite().all()) for _, losses in self._window)
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce_boolean_decision(finite, all=True)
        bad = not finite or (not math.isfinite(grad_norm) and not _scaler_overflow(trainer))
        if bad:
            self.total += 1
            self.in_a_row += 1
        else:
            self.in_a_row = 0
            self._window.clear()
        return bad

    @property
    def exhausted(self) -> bool:
        """Whether the run has to stop: one bad step too many in a row."""
        return self.in_a_row >= self.max_bad_steps

    def report(self, step: int) -> None:
        """Say which pairs were in the refused step, counted from 1."""
        message = (
            f"optimizer step {step}: loss or gradient is not finite, the step is not taken. "
            f"{self._suspects()}"
        )
        self._window.clear()
        log.warning(message)

    def stop_if_exhausted(self) -> None:
        """End the run at the end of a step; no weight has moved since the last good one.

        Raises:
            NotFiniteError: `exhausted`.
        """
        if self.exhausted:
            raise NotFiniteError(
                f"{self.in_a_row} optimizer steps in a row were not finite "
                f"(guard.max_bad_steps={self.max_bad_steps}). {_ADVICE}"
            )

    def divergence(self, weights: Mapping[str, Tensor], val_loss: float) -> NotFiniteError | None:
        """Why a run that has reached its end has not trained; None where it has.

        Args:
            weights: By name.
            val_loss: Of the last validation; a finite number where there was none.
        """
        bad = [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]
        if bad:
            why = f"{len(bad)} of {len(weights)} weights hold NaN or infinity ({bad[0]} first)"
        elif not math.isfinite(val_loss):
            why = f"the last validation has loss {val_loss}"
        elif self.in_a_row > 1:
            why = f"its last {self.in_a_row} optimizer steps were not finite, and not taken"
        else:
            return None
        return NotFiniteError(f"the run diverged, nothing is exported: {why}. {_ADVICE}")

    def _suspects(self) -> str:
        rows = torch.cat([index for index, _ in self._window] or [torch.zeros(0)]).tolist()
        finite = torch.cat([loss.isfinite() for _, loss in self._window] or [torch.zeros(0)])
        bad = [int(row) for row, good in zip(rows, finite.tolist(), strict=True) if not good]
        label = "Pairs with a loss that is not finite" if bad else "Its pairs, each loss finite"
        named = [self.sources(int(row)) for row in (bad or rows)[:20]]
        rest = len(bad or rows) - len(named)
        return f"{label}: {', '.join(named)}" + (f" and {rest} more" if rest > 0 else "")


def _scaler_overflow(trainer: L.Trainer) -> bool:
    """Whether a gradient scaler can still answer an overflow by scaling less."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() > 1.0
