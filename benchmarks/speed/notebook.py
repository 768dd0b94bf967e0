"""The original notebook's step: two forward passes over the rectangle, all logits of both.

Kept: chosen and rejected as rows padded to max_length - 1 label positions, a causal mask alone,
log-softmax over the vocabulary at every position, gather, product with the completion mask,
torch's AdamW by default settings. Changed, so that losses and gradients can be compared: the masked
log-probs are summed, where the notebook takes their mean over all positions, padding included; and
every batch is a step. Neither changes what a pair costs by more than the optimizer's share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from speed.clock import Clock
from speed.request import Request
from speed.ways import CLIP, Run, Step, autocast, load, plain_loop, scaler_of
from speed.workload import open_store


class NotebookStep:
    """Policy, frozen reference and optimizer as the notebook has them."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.collate = Collator("padded", max_length=request.max_length, pad_to_max_length=True)
        self.policy, self.reference = load(request), load(request)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=request.lr)
        self.scaler = scaler_of(request)

    def __call__(self, pairs: Sequence[TokenizedPair]) -> Step:
        x, y, mask = (tensor.to(self.request.device) for tensor in self._rectangle(pairs))
        with torch.no_grad(), autocast(self.request):
            reference = (_logps(self.reference, x, y) * mask).sum(1)
        with autocast(self.request):
            policy = (_logps(self.policy, x, y) * mask).sum(1)
            chosen, rejected = (policy - reference).chunk(2)
            loss = -F.logsigmoid(self.request.beta * (chosen - rejected)).mean()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(loss.detach(), norm)

    def _rectangle(self, pairs: Sequence[TokenizedPair]) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, next tokens and completion mask, (2 pairs, max_length - 1) each."""
        batch = self.collate(pairs)
        x = batch.input_ids.view(2 * len(pairs), -1)
        y, mask = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.float32)
        y.view(-1)[batch.predictor_index] = batch.target_id
        mask.view(-1)[batch.predictor_index] = 1.0
        return x, y, mask


def _logps(model: PreTrainedModel, x: Tensor, y: Tensor) -> Tensor:
    logits = model(input_ids=x, use_cache=False).logits
    return logits.log_softmax(dim=-1).gather(2, y.unsqueeze(2)).squeeze(2)


def notebook(request: Request, clock: Clock) -> Run:
    """Run it."""
    step = NotebookStep(request)
    return plain_loop(request, clock, open_store(request.store), step.policy, step)
