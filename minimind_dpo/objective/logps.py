"""Log-probs of the scored tokens: backbone on T tokens, LM head on the N that are scored.

Vocabulary-sized logits exist for one chunk of scored tokens at a time, in the forward pass and
in the backward pass, which makes them again: memory does not grow with tokens x vocabulary.
For a token with logits z = cap(scale (W h + b)) and target t

    logp = z_t - logsumexp(z)           d logp / dz = onehot(t) - softmax(z)

Products run in the precision of the autocast context; sums, log-sum-exp and log-probs are float32
(float64 where the model is).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minimind_dpo.batch import PairLogps, PreferenceBatch
from minimind_dpo.products import add_product, product

CHUNK_ELEMENTS = 1 << 23
"""Logits alive at once: 32 MiB in float32."""

AuxLoss = Callable[[tuple[Tensor, ...], PreferenceBatch], Tensor]


@dataclass(frozen=True, slots=True)
class Head:
    """A language-model head: logits = cap(scale * (hidden @ weight.T + bias)).

    Attributes:
        weight: (V, H).
        bias: (V,) or None.
        scale: Factor on the logits (Cohere's `logit_scale`, one over Granite's `logits_scaling`).
        softcap: Logits become softcap * tanh(logits / softcap) (Gemma's
            `final_logit_softcapping`); 0 for none.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float = 0.0

    @classmethod
    def of(cls, model: nn.Module) -> Head:
        """Read the head of a `transformers` causal language model.

        Raises:
            ValueError: The head is not a linear layer.
        """
        layer = model.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(layer, nn.Linear):
            raise ValueError(
                f"the LM head of {type(model).__name__} is {type(layer).__name__}, but only a "
                "linear layer can be scored; leave it out of model.lora.target_modules"
            )
        config: Any = model.config
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        softcap = getattr(config, "final_logit_softcapping", None) or 0.0
        return cls(layer.weight, getattr(layer, "bias", None), float(scale), float(softcap))


def sequence_logps(
    model: nn.Module,
    batch: PreferenceBatch,
    *,
    statistics: bool = False,
    aux_loss: AuxLoss | None = None,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> PairLogps:
    """Log-probs of every scored token of a batch under a causal language model.

    Args:
        model: A `transformers` model; planned attention where the batch has a plan.
        batch: P >= 1 pairs.
        statistics: Also give the entropy and the log of the sum of squared probabilities of each
            predicting distribution (no gradient).
        aux_loss: Turns the router logits of a mixture of experts, one (T, experts) per layer,
            into the balance loss; the forward pass collects them only when this is given.
        chunk_elements: Logits alive at once.

    Returns:
        Per-token values (N,) and lengths (2P,).
    """
    keywords: dict[str, Any] = {"use_cache": False}
    if aux_loss is not None:
        keywords["output_router_logits"] = True
    if batch.attention_mask is None:
        shape: tuple[int, ...] = (1, batch.input_ids.numel())
        keywords["plan"] = batch.plan
    else:
        shape = tuple(batch.attention_mask.shape)
        keywords["attention_mask"] = batch.attention_mask
    output = model.base_model(  # type: ignore[operator]
        input_ids=batch.input_ids.view(shape),
        position_ids=batch.position_ids.view(shape),
        **keywords,
    )
    hidden = output.last_hidden_state
    states = hidden.view(-1, hidden.shape[-1]).index_select(0, batch.predictor_index)
    logps, entropy, log_sum_sq = scored_logps(
        states, Head.of(model), batch.target_id, statistics, chunk_elements
    )
    return PairLogps(
        token_logps=logps,
        sequence_id=batch.sequence_id,
        lengths=batch.lengths,
        entropy=entropy if statistics else None,
        log_sum_sq_probs=log_sum_sq if statistics else None,
        aux_loss=None if aux_loss is None else aux_loss(output.router_logits, batch),
    )


def scored_logps(
    states: Tensor,
    head: Head,
    target_id: Tensor,
    statistics: bool = False,
    chunk_elements: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of `target_id` from the states that predict them, in chunks.

    Args:
        states: (N, H).
        head: The model's head.
        target_id: int64 (N,).
        statistics: Also compute the two statistics.
        chunk_elements: Logits alive at once.

    Returns:
        Log-probs (N,); entropy (N,) and log of the sum of squared probabilities (N,), both zeros
        unless asked for. float32, or float64 where `states` is.
    """
    device = states.device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    rows = max(1, chunk_elements // head.weight.shape[0])
    return _ScoredLogps.apply(
        states,
        head.weight,
        head.bias,
        target_id,
        (head.scale, head.softcap, compute or states.dtype, rows, statistics),
    )


class _ScoredLogps(torch.autograd.Function):
    """The chunked head as one autograd node."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target_id: Tensor,
        options: tuple[float, float, torch.dtype, int, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        scale, softcap, compute, rows, statistics = options
        exact = torch.promote_types(torch.float32, states.dtype)
        ctx.save_for_backward(states, weight, bias, target_id)
        ctx.options = options
        logps = torch.empty(len(states), dtype=exact, device=states.device)
        entropy, log_sum_sq = torch.zeros_like(logps), torch.zeros_like(logps)
        with torch.autocast(states.device.type, enabled=False):
            cast_weight = weight.to(compute)
            for part in _chunks(len(states), rows):
                z = _logits(states[part].to(compute), cast_weight, bias, scale, softcap, exact)
                lse = z.logsumexp(-1)
                logps[part] = z.gather(1, target_id[part, None]).squeeze(1) - lse
                if statistics:
                    z -= lse[:, None]
                    log_sum_sq[part] = (2 * z).logsumexp(-1)
                    entropy[part] = -(z.exp() * z).nan_to_num(0.0).sum(-1)
        ctx.mark_non_differentiable(entropy, log_sum_sq)
        return logps, entropy, log_sum_sq

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, target_id = ctx.saved_tensors
        scale, softcap, compute, rows, _ = ctx.options
        exact = torch.promote_types(torch.float32, states.dtype)
        grad_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        grad_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias, dtype=exact)
        with torch.autocast(states.device.type, enabled=False):
            cast_weight = weight.to(compute)
            for part in _chunks(len(states), rows):
                h = states[part].to(compute)
                z = _logits(h, cast_weight, bias, scale, softcap, exact)
                slope = scale * (1 - (z / softcap).square_()) if softcap else scale
                upstream = grads[0][part, None]
                dz = torch.softmax(z, -1).mul_(-upstream)
                dz.scatter_add_(1, target_id[part, None], upstream)
                dz = dz.mul_(slope).to(compute)
                if grad_states is not None:
                    grad_states[part] = product(dz, cast_weight.t()).to(states.dtype)
                if grad_weight is not None:
                    add_product(grad_weight, dz.t(), h.t())
                if grad_bias is not None:
                    grad_bias += dz.sum(0, dtype=exact)
        return (
            grad_states,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _chunks(total: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, total)) for start in range(0, total, rows)]


def _logits(
    h: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float, exact: torch.dtype
) -> Tensor:
    z = product(h, weight).to(exact)
    if bias is not None:
        z += bias.to(exact)
    if scale != 1.0:
        z *= scale
    return torch.tanh_(z.div_(softcap)).mul_(softcap) if softcap else z
