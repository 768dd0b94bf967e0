"""Refuse optimizer steps that are not finite, name the pairs, and stop when it does not pass.

The device decides: a loss that is not finite makes the gradient NaN, a gradient that is not finite
makes its norm so, and a fused optimizer takes no step then. The norm is the same on every rank
after DDP's reduction, so all ranks decide alike. The host reads what was decided when it reads
something from the device anyway; only then it counts, and names pairs. On CUDA that is at logged
steps, validations and saved states, so that it never waits in between.

A gradient scaler's own overflows under 16-mixed are its business and are not counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import lightning as L
import torch
from torch import Tensor

from minimind_dpo.training.lightning_seams import gradient_scale

log = logging.getLogger(__name__)


_ADVICE: Final = (
    "Lower optim.lr, use trainer.precision=32-true or bf16-mixed, and look at the pairs named above"
)


class NotFiniteError(RuntimeError):
    """Too many optimizer steps in a row had a loss or gradient that is not finite."""


class _Step(NamedTuple):
    """An optimizer step that the device has decided and the host has not read.

    Attributes:
        number: Counted from 1.
        facts: (3,) on the device: norm of the gradient, 1 where a loss was not finite else 0, and
            the gradient scale, 0 without a scaler.
        pairs: Of each micro-batch its rows, and whether their losses are finite.
    """

    number: int
    facts: Tensor
    pairs: list[tuple[Tensor, Tensor]]


class StepGuard:
    """Refuses, counts and reports bad steps.

    Args:
        max_bad_steps: Stop after this many in a row.
        sources: Names a row of the token store for people, `dpo.jsonl:17`; rows as numbers
            where None.

    Attributes:
        total: Bad steps so far, of those that are read.
        in_a_row: Bad steps since the last good one.
        exhausted: Whether the run has to stop: one bad step too many in a row.
        norm: Norm of the gradient of the last step that is read.
        taken: Whether the last step was taken, a scalar of the device.
    """

    def __init__(
        self, max_bad_steps: int = 10, sources: Callable[[int], str] | None = None
    ) -> None:
        self.max_bad_steps = max_bad_steps
        self.sources = sources or (lambda row: f"row {row}")
        self.total = 0
        self.in_a_row = 0
        self.exhausted = False
        self.norm = 0.0
        self.taken = torch.tensor(True)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._finite: list[Tensor] = []
        self._unread: list[_Step] = []

    def watch(self, pair_index: Tensor, losses: Tensor) -> Tensor:
        """Remember a micro-batch's pairs until its step is read, and which losses are finite.

        Returns:
            Factor of the micro-batch's loss, a scalar: 1, or NaN where one of the losses is not
            finite, whose gradient might be.
        """
        finite = losses.detach().isfinite()
        self._pairs.append((pair_index, finite))
        self._finite.append(finite.all())
        return torch.where(self._finite[-1], 1.0, math.nan)

    def decide(
        self, optimizer: torch.optim.Optimizer, norm: Tensor, step: int, scale: Tensor | None = None
    ) -> None:
        """Let the optimizer take its next step only if the gradient's norm is finite.

        Does not wait for the device where the optimizer is fused.

        Args:
            optimizer: Whose gradients are unscaled, reduced over ranks and clipped.
            norm: Of them before they were clipped, scalar.
            step: Its number, counted from 1.
            scale: The gradient scaler's, scalar.
        """
        self.taken = norm.isfinite()
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = (~self.taken).float()  # type: ignore[attr-defined]
        elif not self.taken:
            optimizer.zero_grad()
        finite = self._finite
        loss_is_bad = ~torch.stack(finite).all() if finite else torch.zeros_like(norm)
        scale = torch.zeros_like(norm) if scale is None else scale
        facts = torch.stack([fact.to(norm) for fact in (norm, loss_is_bad, scale)])  # (3,)
        self._unread.append(_Step(step, facts, self._pairs))
        self._pairs, self._finite = [], []

    def read(self, trainer: L.Trainer) -> None:
        """Count the steps since the last call, and say which pairs were in refused ones.

        Waits for the device; to be called by all ranks at the same point.
        """
        steps, self._unread = self._unread, []
        if not steps:
            return
        norms, bad_losses, scales = torch.stack([step.facts for step in steps]).unbind(1)
        if trainer.world_size > 1 and gradient_scale(trainer) is not None:
            # Another rank's loss may be what this one takes for an overflow.
            bad_losses = bad_losses.contiguous()
            torch.distributed.all_reduce(bad_losses, torch.distributed.ReduceOp.MAX)
        told = torch.stack([norms, bad_losses, scales], dim=1).tolist()
        for step, (norm, bad_loss, scale) in zip(steps, told, strict=True):
            # A gradient scaler can still answer an overflow by scaling less.
            overflow = scale > 1.0 and not bad_loss
            self._count(step, bad=not math.isfinite(norm) and not overflow)
        self.norm = told[-1][0]

    def _count(self, step: _Step, *, bad: bool) -> None:
        self.in_a_row = self.in_a_row + 1 if bad else 0
        if not bad:
            return
        self.total += 1
        self.exhausted = self.exhausted or self.in_a_row >= self.max_bad_steps
        log.warning(
            f"optimizer step {step.number}: loss or gradient is not finite, the step is not "
            f"taken. {self._suspects(step.pairs)}"
        )

    def stop_if_exhausted(self) -> None:
        """End the run at the end of a step; no weight has moved since the last good one.

        Raises:
            NotFiniteError: `exhausted`.
        """
        if self.exhausted:
            raise NotFiniteError(
                f"{self.max_bad_steps} optimizer steps in a row were not finite "
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

    def _suspects(self, pairs: list[tuple[Tensor, Tensor]]) -> str:
        rows = torch.cat([index for index, _ in pairs] or [torch.zeros(0)]).tolist()
        finite = torch.cat([finite for _, finite in pairs] or [torch.zeros(0)])
        bad = [int(row) for row, good in zip(rows, finite.tolist(), strict=True) if not good]
        label = "Pairs with a loss that is not finite" if bad else "Its pairs, each loss finite"
        named = [self.sources(int(row)) for row in (bad or rows)[:20]]
        rest = len(bad or rows) - len(named)
        return f"{label}: {', '.join(named)}" + (f" and {rest} more" if rest > 0 else "")
