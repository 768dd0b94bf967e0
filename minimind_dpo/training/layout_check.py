"""Prove, as a model is loaded, that it scores pairs in the asked layout as it would alone.

A few made-up tokens go through the model the plain way, one sequence at a time with all logits,
and through the layout. Linear attention, state-space layers, masks of a model's own or a head that
is more than a linear layer would otherwise give wrong numbers without a word.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minimind_dpo.batch import TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention.planned import plain_attention
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.objective.logps import sequence_logps
from minimind_dpo.training.reference import evaluating

TOLERANCE = 1e-2
"""Nats a token. Rounding is below 1e-4 in float32; a wrong mask or position is above 0.1."""


def check_layout(model: PreTrainedModel, layout: str) -> None:
    """Compare a layout with plain forwards of the same model.

    Args:
        model: On any device, attention already set for the layout.
        layout: `prefix_shared`, `packed` or `padded`.

    Raises:
        CheckpointError: They differ, or the model cannot be run in this layout at all.
    """
    pairs = _pairs(int(model.get_input_embeddings().weight.size(0)))  # type: ignore[operator]
    with torch.no_grad(), evaluating(model):
        expected = _plain_logps(model, pairs)
        try:
            batch = Collator(layout, max_length=64)(pairs).to(model.device)
            got = sequence_logps(model, batch).token_logps.cpu()
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(_message(model, layout, f"it fails there: {error}")) from error
    worst = float((got - expected).abs().max())
    if not worst <= TOLERANCE:
        reason = f"log-probs differ from the model's own by up to {worst:.3g} nats a token"
        raise CheckpointError(_message(model, layout, reason))


def _pairs(vocabulary: int) -> list[TokenizedPair]:
    """Two pairs, longer than common short windows would hide, of fixed ids."""
    generator = np.random.default_rng(0)
    shapes = ((9, 6, 4), (3, 5, 12))
    pairs = []
    for index, shape in enumerate(shapes):
        prompt, chosen, rejected = (
            generator.integers(0, vocabulary, n).astype(np.int32) for n in shape
        )
        pairs.append(TokenizedPair(prompt, chosen, rejected, index))
    return pairs


def _plain_logps(model: PreTrainedModel, pairs: list[TokenizedPair]) -> Tensor:
    rows = []
    with plain_attention(model):
        for side in ("chosen_ids", "rejected_ids"):
            for pair in pairs:
                completion = getattr(pair, side)
                ids = torch.from_numpy(np.concatenate([pair.prompt_ids, completion])).long()
                ids = ids.to(model.device)
                logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
                logps = logits.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
                rows.append(logps[-len(completion) :].cpu())
    return torch.cat(rows)


def _message(model: PreTrainedModel, layout: str, reason: str) -> str:
    advice = (
        "Use data.layout=padded for this model"
        if layout != "padded"
        else "This model cannot be trained here; its head may be more than a linear layer"
    )
    return f"{type(model).__name__} cannot be scored with data.layout={layout}: {reason}. {advice}"
