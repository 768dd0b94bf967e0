"""Log-probs of a batch: backbone on T tokens, LM head on the N that are scored; and their KL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.objective.lm_head import KEPT_ELEMENTS, Head, scored_logps

AuxLoss = Callable[[tuple[Tensor, ...], PreferenceBatch], Tensor]


@dataclass(frozen=True, slots=True)
class PairLogps:
    """Log-probs of the scored tokens of P pairs under one model.

    Attributes:
        token_logps: float32 (N,) log p(token | before it), in nats.
        sequence_id: int64 (N,), as in `PreferenceBatch`.
        lengths: int64 (2P,), scored tokens of each sequence.
        entropy: float32 (N,) entropy of the predicting distribution in nats, no gradient; None
            where it was not asked for.
        log_sum_sq_probs: float32 (N,) log of the sum of squared probabilities of the predicting
            distribution, no gradient, for WPO weighting; None where it was not asked for.
        aux_loss: Mixture-of-experts balance loss of the forward pass, scalar, or None.
    """

    token_logps: Tensor
    sequence_id: Tensor
    lengths: Tensor
    entropy: Tensor | None = None
    log_sum_sq_probs: Tensor | None = None
    aux_loss: Tensor | None = None

    @property
    def num_pairs(self) -> int:
        """P."""
        return self.lengths.numel() // 2

    def sum_per_sequence(self, values: Tensor) -> Tensor:
        """Sum per-token `values` (N,) into sequences: (2P,), chosen first."""
        total = torch.zeros(self.lengths.numel(), dtype=values.dtype, device=values.device)
        return total.index_add(0, self.sequence_id, values)

    @property
    def sums(self) -> Tensor:
        """Sequence log-probs (2P,), chosen first, in nats."""
        return self.sum_per_sequence(self.token_logps)


def sequence_logps(
    model: nn.Module,
    batch: PreferenceBatch,
    *,
    statistics: bool = False,
    aux_loss: AuxLoss | None = None,
) -> PairLogps:
    """Log-probs of every scored token of a batch under a causal language model.

    Args:
        model: A `transformers` model; planned attention where the batch has a plan.
        batch: P >= 1 pairs.
        statistics: Also give the entropy and the log of the sum of squared probabilities of each
            predicting distribution (no gradient).
        aux_loss: Turns the router logits of a mixture of experts, one (T, experts) per layer,
            into the balance loss; the forward pass collects them only when this is given.

    Returns:
        Per-token values (N,) and lengths (2P,).
    """
    states, output = predictor_states(model, batch, router_logits=aux_loss is not None)
    logps, entropy, log_sum_sq = scored_logps(states, Head.of(model), batch.target_id, statistics)
    return PairLogps(
        token_logps=logps,
        sequence_id=batch.sequence_id,
        lengths=batch.lengths,
        entropy=entropy if statistics else None,
        log_sum_sq_probs=log_sum_sq if statistics else None,
        aux_loss=None if aux_loss is None else aux_loss(output.router_logits, batch),
    )


def predictor_states(
    model: nn.Module, batch: PreferenceBatch, *, router_logits: bool = False
) -> tuple[Tensor, Any]:
    """States of the tokens that predict the scored ones.

    Args:
        model: As `sequence_logps` takes it.
        batch: P >= 1 pairs.
        router_logits: Collect those of a mixture of experts.

    Returns:
        (N, H), and the output of the backbone.
    """
    keywords: dict[str, Any] = {"use_cache": False}
    if router_logits:
        keywords["output_router_logits"] = True
    if batch.attention_mask is None:
        shape: tuple[int, ...] = (1, batch.input_ids.numel())
        keywords["plan"] = batch.plan
    else:
        shape = tuple(batch.attention_mask.shape)
        keywords["attention_mask"] = batch.attention_mask
    output = _backbone(model)(
        input_ids=batch.input_ids.view(shape),
        position_ids=batch.position_ids.view(shape),
        **keywords,
    )
    hidden = output.last_hidden_state
    return hidden.view(-1, hidden.shape[-1]).index_select(0, batch.predictor_index), output


def _backbone(model: nn.Module) -> nn.Module:
    """What a causal language model runs below its head.

    Raises:
        ValueError: The model does not keep it apart.
    """
    backbone: Any = model.base_model
    if backbone is model:
        # Where no attribute has the name that the class gives its backbone (Llama 4).
        backbone = getattr(model, "model", None)
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"{type(model).__name__} keeps no backbone apart from its LM head")
    return backbone


def token_kl(policy: Tensor, policy_head: Head, reference: Tensor, reference_head: Head) -> Tensor:
    """KL(policy || reference) of the next token, exactly:

        sum over v of p(v) (log p(v) - log q(v))

    Summed over an answer that the policy drew, it estimates the divergence between answers without
    bias, is never negative, and varies less than the log-ratio of the tokens drawn.

    Args:
        policy: (N, H) states that predict the tokens.
        policy_head: The policy's head.
        reference: (N, H') states of the same tokens.
        reference_head: The reference's head, over the same vocabulary.

    Returns:
        float32 (N,), in nats; float64 where the states are.
    """
    size = max(1, KEPT_ELEMENTS // max(len(policy_head.weight), 1))
    parts = []
    for p, q in zip(policy.split(size), reference.split(size), strict=True):
        log_p, log_q = (  # (n, V)
            head.logits(states).log_softmax(-1)
            for head, states in ((policy_head, p), (reference_head, q))
        )
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)
