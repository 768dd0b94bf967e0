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
    out = _BlockAttention.apply(query, key, value, plan, scale, window)
    assert isinstance(out, Tensor)
    return out


class _BlockAttention(torch.autograd.Function):
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
        q, k, v = _grouped(query, key, value, scale)
        out = q.new_empty(*q.shape[:3], v.shape[-1])
        for tokens, index in _sequences(plan):
            keys, values = _by_head(k, index), _by_head(v, index)
            for head in range(k.shape[1]):
                for block in _blocks(tokens, keys.shape[1], q.shape[2], window):
                    weights = _weights(q, keys, head, block, window, plan)
                    rows = product(weights, values[head, block.keys].t())
                    out[block.queries, head] = rows.view(-1, *out.shape[2:])
        ctx.save_for_backward(query, key, value, out)
        ctx.rest = plan, scale, window
        return out.flatten(1, 2).to(query.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out = ctx.saved_tensors
        plan, scale, window = ctx.rest
        q, k, v = _grouped(query, key, value, scale)
        d_out = upstream.to(out.dtype).view(out.shape)
        inner = (d_out * out).sum(-1, keepdim=True)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for tokens, index in _sequences(plan):
            keys, values = _by_head(k, index), _by_head(v, index)
            # NOTE: transposed, (kv_heads, head_dim, keys): oneDNN is slow where the left side is.
            dkeys, dvalues = (torch.zeros_like(x.transpose(1, 2)) for x in (keys, values))
            for head in range(k.shape[1]):
                for block in _blocks(tokens, keys.shape[1], q.shape[2], window):
                    weights = _weights(q, keys, head, block, window, plan)
                    rows = d_out[block.queries, head].flatten(0, 1)
                    dvalues[head, :, block.keys] += product(rows.t(), weights.t())
                    slope = product(rows, values[head, block.keys])
                    slope -= inner[block.queries, head].flatten(0, 1)
                    slope *= weights
                    into = product(slope, keys[head, block.keys].t())
                    dq[block.queries, head] = into.view(-1, *q.shape[2:])
                    rows = q[block.queries, head].flatten(0, 1)
                    dkeys[head, :, block.keys] += product(rows.t(), slope.t())
            dk[index] += dkeys.permute(2, 0, 1)
            dv[index] += dvalues.permute(2, 0, 1)
        dq = dq.flatten(1, 2).mul_(scale).to(query.dtype)
        return dq, dk.to(key.dtype), dv.to(value.dtype), None, None, None


class _Block(NamedTuple):
    """Some queries of a sequence, and the keys that any of them sees.

    Attributes:
        queries: Tokens of the batch.
        keys: Keys of the sequence.
        ahead: How many of these keys the first query sees.
    """

    queries: slice
    keys: slice
    ahead: int


def _grouped(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries as (T, kv_heads, group, head_dim); all in the arithmetic's precision."""
    exact = torch.promote_types(q.dtype, torch.float32)
    shape = (len(q), k.shape[1], q.shape[1] // k.shape[1], q.shape[2])
    return (q.to(exact) * scale).view(shape), k.to(exact), v.to(exact)


def _by_head(x: Tensor, index: slice | Tensor) -> Tensor:
    """Keys or values of a sequence as (kv_heads, keys, head_dim), contiguous."""
    return x[index].transpose(0, 1).contiguous()


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
        yield _Block(slice(start, stop), slice(first, last), ahead - first)


def _weights(
    q: Tensor, keys: Tensor, head: int, block: _Block, window: int | None, plan: AttentionPlan
) -> Tensor:
    """softmax(Q K^T) of one block and key head, (queries * group, keys)."""
    scores = product(q[block.queries, head].flatten(0, 1), keys[head, block.keys])
    queries, seen = block.queries.stop - block.queries.start, scores.shape[1]
    if window is None or seen <= window:
        # Only the block's own tokens can lie ahead of a query.
        scores[:, seen - queries :] += _hidden(queries, queries, 1, None, q, plan)
    else:
        scores += _hidden(queries, seen, block.ahead, window, q, plan)
    return scores.softmax(-1)


def _hidden(
    queries: int, keys: int, ahead: int, window: int | None, q: Tensor, plan: AttentionPlan
) -> Tensor:
    """0 where a query sees a key and -inf elsewhere, (queries * group, keys)."""
    group = q.shape[2]
    kind = (queries, keys, ahead, window, group, q.dtype)
    if kind not in plan.masks:
        distance = torch.arange(ahead - 1, ahead - 1 + queries)[:, None] - torch.arange(keys)
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        hidden = torch.zeros(queries, keys, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
        plan.masks[kind] = hidden.repeat_interleave(group, dim=0)
    return plan.masks[kind]
