"""Planned attention: any `transformers` model on packed pairs, with no mask and no patch.

transformers lets a caller register an attention function and hands it every keyword that the
forward call got. `planned_attention` receives the batch's `AttentionPlan` that way: the T packed
tokens are cut into sequences, each sees its own keys and those it borrows from the sequence before
it (the shared prompt), causally, aligned at the end. A mask function of the same name returns
nothing, or transformers would build a T x T mask each forward.

On CUDA in half precision one variable-length kernel does the whole batch (`cuda_varlen`), on a CPU
long sequences go in blocks of queries (`cpu_blocks`); elsewhere, and where scores are capped or
weights are dropped, each sequence is one `scaled_dot_product_attention`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from minimind_dpo.batch import AttentionPlan
from minimind_dpo.models.attention.cpu_blocks import block_attention
from minimind_dpo.models.attention.cuda_varlen import (
    has_flash,
    in_autocast_dtype,
    on_cuda,
    takes_varlen,
    varlen_attention,
)
from minimind_dpo.models.errors import CheckpointError

PLANNED = "minimind_dpo_planned"

LONG = 192
"""Mean number of keys a sequence from which blocks of queries are the faster way on a CPU."""


class _Scores(NamedTuple):
    """How scores are made, and weights of them; as keywords of `planned_attention`."""

    scaling: float | None
    window: int | None
    softcap: float | None
    dropout: float


def planned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    plan: AttentionPlan | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Attention of T packed tokens by a plan, in the form transformers expects.

    Args:
        module: The attention layer that calls; unused.
        query: (1, heads, T, head_dim).
        key: (1, kv_heads, T, head_dim); kv_heads divides heads.
        value: (1, kv_heads, T, value_dim).
        attention_mask: Must be None; the plan says it all.
        plan: Which keys each token sees; arrives through the forward call's keywords.
        dropout: Probability with which attention weights are dropped.
        scaling: Factor on the scores, head_dim ** -0.5 where None.
        sliding_window: Keys further back than this many tokens, itself included, are not seen.
        softcap: Scores become softcap * tanh(scores / softcap) (Gemma 2).
        extra: What else the model passes; attention sinks are refused.

    Returns:
        (1, T, heads, value_dim), and None in place of attention weights.

    Raises:
        RuntimeError: The model needs something that a plan cannot express.
    """
    if plan is None:
        raise RuntimeError(
            "planned attention was called without a plan: the model does not hand keywords of its "
            "forward call to its attention layers"
        )
    if attention_mask is not None or extra.get("s_aux") is not None:
        raise RuntimeError(
            "this model adds its own mask or sinks to the attention scores, which a plan cannot "
            "express"
        )
    # A window as long as the longest text shows every key.
    window = sliding_window if sliding_window and sliding_window < plan.longest_key else None
    if on_cuda(query):
        query, key, value = in_autocast_dtype(query, key, value)
        if takes_varlen(query, value, softcap, dropout):
            return varlen_attention(query, key, value, plan, scaling, window), None
    return _outside_graphs(
        query, key, value, plan, _Scores(scaling, window, softcap, dropout)
    ), None


# NOTE: kept out of compiled layers, where lists of changing length would recompile each batch.
@torch.compiler.disable
def _outside_graphs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scores: _Scores,
) -> Tensor:
    long = sum(plan.key_lengths) >= LONG * len(plan.key_lengths)
    plain = scores.softcap is None and scores.dropout == 0.0
    if long and plain and query.device.type == "cpu":
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        window = scores.window if scores.window and scores.window < max(plan.key_lengths) else None
        return block_attention(q, k, v, plan, scores.scaling, window).unsqueeze(0)
    return _per_sequence(query, key, value, plan, scores)


def _per_sequence(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scores: _Scores
) -> Tensor:
    # NOTE: split, never slice: the backward pass of each slice fills a zero tensor of length T.
    lengths = list(plan.query_lengths)
    queries = query.split(lengths, dim=2)
    pieces = zip(queries, key.split(lengths, dim=2), value.split(lengths, dim=2), strict=True)
    outputs = []
    last_k, last_v = key[:, :, :0], value[:, :, :0]
    for (q, k, v), borrowed in zip(pieces, plan.borrowed, strict=True):
        if borrowed:
            k = torch.cat([last_k[:, :, :borrowed], k], dim=2)  # (1, kv_heads, keys, head_dim)
            v = torch.cat([last_v[:, :, :borrowed], v], dim=2)
        last_k, last_v = k, v
        mask = _causal_mask(plan, q.shape[2], k.shape[2], scores.window, q.device)
        outputs.append(_attend(q, k, v, mask, scores).transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scores: _Scores) -> Tensor:
    scaling, _, softcap, dropout = scores
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and (softcap is not None or _lacks_groups(q, mask)):
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if softcap is None:
        return F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    raw = (q @ k.transpose(2, 3)) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    capped = softcap * torch.tanh(raw / softcap)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    weights = capped.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    return F.dropout(weights.to(v.dtype), dropout) @ v


def _lacks_groups(query: Tensor, mask: Tensor | None) -> bool:
    """Whether CUDA's fused kernels for this call take no grouped heads.

    Flash attention does; the memory-efficient kernel, for masks, full precision and cards of before
    8.0, does not, and torch would fall back to the mathematical path, which writes all scores.
    """
    return query.is_cuda and (mask is not None or not has_flash(query.dtype))


def _causal_mask(
    plan: AttentionPlan, queries: int, keys: int, window: int | None, device: torch.device
) -> Tensor | None:
    """Boolean (queries, keys), True where seen; None where plain causal attention says it."""
    if queries == keys and (window is None or window >= keys):
        return None
    kind = (queries, keys, window, device)
    if kind not in plan.masks:
        # NOTE: the last query sees the last key; torch's own is_causal aligns the first ones.
        distance = torch.arange(keys - queries, keys, device=device)[:, None] - torch.arange(
            keys, device=device
        )
        visible = distance >= 0
        plan.masks[kind] = visible if window is None else visible & (distance < window)
    return plan.masks[kind]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Stand in for transformers' mask builders: the plan already says who sees whom."""
    return


AttentionInterface.register(PLANNED, planned_attention)
AttentionMaskInterface.register(PLANNED, _no_mask)


def plain_implementation(model: PreTrainedModel) -> str:
    """Name of transformers' own attention for this model; Gemma 2 has no fused one."""
    return "sdpa" if model._supports_sdpa else "eager"


def use_planned_attention(model: PreTrainedModel, planned: bool) -> None:
    """Switch a model between planned attention and transformers' own.

    Raises:
        CheckpointError: The model's attention cannot be planned.
    """
    if torch.cuda.is_available():
        # cuDNN, torch's first choice on cards of capability 9 and 10, plans each new length anew.
        torch.backends.cuda.enable_cudnn_sdp(False)
    implementation = PLANNED if planned else plain_implementation(model)
    if model.config._attn_implementation == implementation:
        return
    if planned and not model._can_set_attn_implementation():
        raise CheckpointError(
            f"the attention of {type(model).__name__} cannot be planned: it does not use "
            "transformers' attention interface"
        )
    if planned and getattr(model.config, "attn_temperature_tuning", False):
        raise CheckpointError(
            f"the attention of {type(model).__name__} cannot be planned: it scales queries by "
            "their place in the batch (attn_temperature_tuning), not in the text"
        )
    model.set_attn_implementation(implementation)


@contextlib.contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model run transformers' own attention for a while, for instance to generate."""
    before = model.config._attn_implementation
    model.set_attn_implementation(plain_implementation(model))
    try:
        yield
    finally:
        model.set_attn_implementation(before)
