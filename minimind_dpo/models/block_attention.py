"""Planned attention of a CPU as one autograd node: blocks of queries, no mask, no copies.

For query rows Q (scaled), visible keys K, values V and upstream gradient dO (Dao et al. 2022,
"FlashAttention", section 3 and appendix B):

    S = Q K^T    P = softmax(S)    O = P V
    dV = P^T dO    dS = P * (dO V^T - rowsum(dO * O))    dQ = dS K    dK = dS^T Q

Queries are taken in blocks, so that S of one block and key head stays in the processor's cache
and keys that no query of a block sees are never multiplied: causal attention costs half of a
square, and a borrowed prompt costs its keys alone. P is made again in the backward pass,
so memory grows with tokens and not with their square. Query heads that share a key head are
multiplied together. Half precision is computed in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimind_dpo.batch import AttentionPlan
from minimind_dpo.products import product

BLOCK_ROWS = 256
"""Rows of one product: queries of a block times the query heads that share a key head."""


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scaling: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of T packed tokens by a plan.

    Args:
        query: (T, heads, head_dim).
        key: (T, kv_heads, head_dim); kv_heads divides heads.
        value: (T, kv_heads, value_dim).
        plan: Which keys each token sees.
        scaling: Factor on the scores, head_dim ** -0.5 where None.
        window: Keys further back than this many tokens, itself included, are not seen.

    Returns:
        (T, heads, value_dim), in the dtype of `query`.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Autocast would round scores, and only those of the forward pass.
    with torch.autocast(query.device.type, enabled=False):
        out = _BlockAttention.apply(query, key, value, plan, scale, window)
    assert isinstance(out, Tensor)
    return out


class _BlockAttention(torch.autograd.Function):
    """The arithmetic by key head: rows (T * group, d) of its query heads, keys (T, d)."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        scale: float,
        window: int | None,
    ) -> Tensor:
        group = query.shape[1] // key.shape[1]
        q, k, v = _rows(query, group, scale), _rows(key), _rows(value)
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for tokens, index in _sequences(plan):
            keys, values = k[:, index], v[:, index]
            for block in _blocks(tokens, keys.shape[1], group, window):
                for head in range(len(k)):
                    seen = keys[head, block.keys]
                    weights = _weights(q[head, block.rows], seen, block, group, window, plan)
                    out[head, block.rows] = product(weights, values[head, block.keys].t())
        ctx.save_for_backward(query, key, value, out)
        ctx.rest = plan, scale, window
        return _by_token(out, group).to(query.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out = ctx.saved_tensors
        plan, scale, window = ctx.rest
        group = query.shape[1] // key.shape[1]
        q, k, v = _rows(query, group, scale), _rows(key), _rows(value)
        d_out = _rows(upstream, group)
        inner = (d_out * out).sum(-1, keepdim=True)
        # NOTE: transposed, (kv_heads, head_dim, T): oneDNN is slow where the left side would be.
        dk, dv = (x.new_zeros(len(x), x.shape[2], x.shape[1]) for x in (k, v))
        dq = torch.empty_like(q)
        for tokens, index in _sequences(plan):
            keys, values = k[:, index], v[:, index]
            # A sequence's own keys are a piece of the result; borrowed ones are added to it after.
            dkeys, dvalues = (
                x[..., index] if isinstance(index, slice) else torch.zeros_like(x[..., index])
                for x in (dk, dv)
            )
            for block in _blocks(tokens, keys.shape[1], group, window):
                for head in range(len(k)):
                    rows, slope = q[head, block.rows], d_out[head, block.rows]
                    seen = keys[head, block.keys]
                    weights = _weights(rows, seen, block, group, window, plan)
                    dvalues[head, :, block.keys] += product(slope.t(), weights.t())
                    slope = product(slope, values[head, block.keys])
                    slope.sub_(inner[head, block.rows]).mul_(weights)
                    dq[head, block.rows] = product(slope, seen.t())
                    dkeys[head, :, block.keys] += product(rows.t(), slope.t())
            if isinstance(index, Tensor):
                dk.index_add_(2, index, dkeys)
                dv.index_add_(2, index, dvalues)
        dquery = _by_token(dq.mul_(scale), group).to(query.dtype)
        dkey, dvalue = (x.permute(2, 0, 1).to(key.dtype) for x in (dk, dv))
        return dquery, dkey, dvalue, None, None, None


class _Block(NamedTuple):
    """Some queries of a sequence, and the keys that any of them sees.

    Attributes:
        rows: Queries x heads of a group, in order of tokens.
        keys: Keys of the sequence.
        ahead: How many of these keys the first query sees.
    """

    rows: slice
    keys: slice
    ahead: int


def _rows(x: Tensor, group: int = 1, scale: float = 1.0) -> Tensor:
    """(T, heads, d) as (heads / group, T * group, d), scaled, in float32 or more, contiguous."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    by_head = exact.reshape(len(x), -1, group, x.shape[-1]).transpose(0, 1).flatten(1, 2)
    return (by_head * scale if scale != 1.0 else by_head).contiguous()


def _by_token(rows: Tensor, group: int) -> Tensor:
    """The inverse of `_rows`: (kv_heads, T * group, d) as (T, heads, d)."""
    kv_heads, _, width = rows.shape
    return (
        rows.view(kv_heads, -1, group, width).transpose(0, 1).reshape(-1, kv_heads * group, width)
    )


def _sequences(plan: AttentionPlan) -> Iterator[tuple[slice, slice | Tensor]]:
    """Tokens of each sequence, and tokens behind its keys."""
    start = first = 0
    for queries, keys in zip(plan.query_lengths, plan.key_lengths, strict=True):
        tokens = slice(start, start + queries)
        yield tokens, tokens if queries == keys else plan.key_index[first : first + keys]
        start, first = start + queries, first + keys


def _blocks(tokens: slice, keys: int, group: int, window: int | None) -> Iterator[_Block]:
    size = max(1, BLOCK_ROWS // group)
    borrowed = keys - (tokens.stop - tokens.start)
    for start in range(tokens.start, tokens.stop, size):
        stop = min(start + size, tokens.stop)
        ahead = borrowed + start - tokens.start + 1
        first = 0 if window is None else max(0, ahead - window)
        last = borrowed + stop - tokens.start
        yield _Block(slice(start * group, stop * group), slice(first, last), ahead - first)


def _weights(
    rows: Tensor, keys: Tensor, block: _Block, group: int, window: int | None, plan: AttentionPlan
) -> Tensor:
    """softmax(Q K^T) of one block and key head, (queries * group, keys)."""
    scores = product(rows, keys)
    seen, queries = len(keys), len(rows) // group
    if window is None or seen <= window:
        # Only the block's own tokens can lie ahead of a query.
        scores[:, seen - queries :] += _hidden(queries, queries, 1, None, group, rows.dtype, plan)
    else:
        scores += _hidden(queries, seen, block.ahead, window, group, rows.dtype, plan)
    return scores.softmax(-1)


def _hidden(
    queries: int,
    keys: int,
    ahead: int,
    window: int | None,
    group: int,
    dtype: torch.dtype,
    plan: AttentionPlan,
) -> Tensor:
    """0 where a query sees a key and -inf elsewhere, (queries * group, keys)."""
    kind = (queries, keys, ahead, window, group, dtype)
    if kind not in plan.masks:
        distance = torch.arange(ahead - 1, ahead - 1 + queries)[:, None] - torch.arange(keys)
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        hidden = torch.zeros(queries, keys, dtype=dtype).masked_fill_(~seen, float("-inf"))
        plan.masks[kind] = hidden.repeat_interleave(group, dim=0)
    return plan.masks[kind]
