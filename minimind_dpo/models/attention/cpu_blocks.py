"""Planned attention of a CPU as one autograd node: blocks of queries, no mask, no copies.

For query rows Q (scaled), visible keys K, values V and upstream gradient dO (Dao et al. 2022,
"FlashAttention", section 3 and appendix B):

    S = Q K^T    L = logsumexp(S)    P = exp(S - L)    O = P V
    dV = P^T dO    dS = P * (dO V^T - rowsum(dO * O))    dQ = dS K    dK = dS^T Q

Queries are taken in blocks, so that S of one block and key head stays in the processor's cache
and keys that no query of a block sees are never multiplied: causal attention costs half of a
square, and a borrowed prompt costs its keys alone. P is made again in the backward pass,
so memory grows with tokens and not with their square. Query heads that share a key head are
multiplied together: rows (T * group, d) of one key head, keys (T, d). Q carries log2(e), so that
weights are powers of two: exp2 costs a quarter of what exp does by MKL. Half precision is computed
in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minimind_dpo.batch import AttentionPlan
from minimind_dpo.kernels.cpu_matmul import product

LOG2_E = 1 / math.log(2)

BLOCK_ROWS = 384
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
    """The node. Autocast would round scores, so neither pass is under it."""

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
        with torch.autocast("cpu", enabled=False):
            out, log_sum = _attend(query, key, value, plan, scale, window)
        ctx.save_for_backward(query, key, value, out, log_sum)
        ctx.rest = plan, scale, window
        return _by_token(out, query.shape[1] // key.shape[1]).to(query.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast("cpu", enabled=False):
            return *_gradients(upstream, *ctx.saved_tensors, *ctx.rest), None, None, None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """O, (kv_heads, T * group, value_dim), and L to base 2, (kv_heads, T * group)."""
    group = query.shape[1] // key.shape[1]
    q, k, v = _rows(query, group, scale * LOG2_E), _rows(key), _rows(value)
    out, log_sum = q.new_empty(*q.shape[:2], v.shape[-1]), q.new_empty(q.shape[:2])
    for tokens, index in _sequences(plan):
        keys, values = _behind(k, index), _behind(v, index)
        for block in _blocks(tokens, keys.shape[1], group, window):
            bias = _causal_bias(block, group, window, q.dtype, plan)
            inputs = q[:, block.rows], keys[:, block.keys], values[:, block.keys]
            results = out[:, block.rows], log_sum[:, block.rows]
            for q_b, k_b, v_b, o_b, lse in _heads(*inputs, *results):
                scores = product(q_b, k_b)  # (rows, keys)
                scores[:, block.masked] += bias
                top = scores.amax(-1, keepdim=True)
                weights = scores.sub_(top).exp2_()
                total = weights.sum(-1, keepdim=True)
                torch.div(product(weights, v_b.t()), total, out=o_b)  # (rows, value_dim)
                torch.add(top, total.log2_(), out=lse.unsqueeze(-1))
    return out, log_sum


def _gradients(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    log_sum: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK, dV as the inputs are laid out."""
    group = query.shape[1] // key.shape[1]
    q, k, v = _rows(query, group, scale * LOG2_E), _rows(key), _rows(value)
    d_out = _rows(upstream, group)
    less_lse, less_inner = -log_sum, -(d_out * out).sum(-1)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for tokens, index in _sequences(plan):
        keys, values = _behind(k, index), _behind(v, index)
        keys_t = keys.transpose(1, 2).contiguous()  # (kv_heads, d, keys)
        # A sequence's own keys are a piece of the result; borrowed ones are added to it after.
        if isinstance(index, slice):
            dkeys, dvalues = dk[:, index], dv[:, index]
        else:
            dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        for block in _blocks(tokens, keys.shape[1], group, window):
            bias = _causal_bias(block, group, window, q.dtype, plan, by_key=True)
            of_rows = (x[:, block.rows] for x in (q, d_out, less_lse, less_inner, dq))
            of_keys = (x[:, block.keys] for x in (keys, values, dkeys, dvalues))
            for q_b, do_b, less_lse_b, less_inner_b, dq_b, k_b, v_b, dk_b, dv_b, kt_b in _heads(
                *of_rows, *of_keys, keys_t[:, :, block.keys]
            ):
                # By key, (keys, rows): what is summed over a row is then a bias of the products.
                weights = product(k_b, q_b, less_lse_b)
                weights[block.masked] += bias
                dv_b += product(weights.exp2_(), do_b.t())
                dscores = product(v_b, do_b, less_inner_b).mul_(weights)
                dk_b += product(dscores, q_b.t())
                dq_b.copy_(product(kt_b, dscores.t()).t())
        if isinstance(index, Tensor):
            dk.index_add_(1, index, dkeys)
            dv.index_add_(1, index, dvalues)
    dquery = _by_token(dq.mul_(scale), group).to(query.dtype)
    # q carries log2(e), which its derivative does not.
    dkey = dk.div_(LOG2_E).transpose(0, 1).to(key.dtype)
    return dquery, dkey, dv.transpose(0, 1).to(value.dtype)


class _Block(NamedTuple):
    """Some queries of a sequence, and the keys that any of them sees.

    Attributes:
        rows: Queries x heads of a group, in order of tokens.
        keys: Keys of the sequence.
        masked: Those of `keys`, counted from the first, that not every query sees.
        ahead: How many of the masked keys the first query could see, if there were no window.
    """

    rows: slice
    keys: slice
    masked: slice
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


def _behind(x: Tensor, index: slice | Tensor) -> Tensor:
    """The tokens of (kv_heads, T, d) that a sequence has as keys."""
    return x[:, index] if isinstance(index, slice) else x.index_select(1, index)


def _blocks(tokens: slice, keys: int, group: int, window: int | None) -> Iterator[_Block]:
    size = max(1, BLOCK_ROWS // group)
    borrowed = keys - (tokens.stop - tokens.start)
    for start in range(tokens.start, tokens.stop, size):
        stop = min(start + size, tokens.stop)
        ahead, last = borrowed + start - tokens.start + 1, borrowed + stop - tokens.start
        first = 0 if window is None else max(0, ahead - window)
        # Only the block's own tokens can lie ahead of a query, but any key beyond its window.
        whole = window is None or last - first <= window
        masked = slice(ahead - 1 - first if whole else 0, last - first)
        rows = slice(start * group, stop * group)
        yield _Block(rows, slice(first, last), masked, ahead - first - masked.start)


def _heads(*of_all: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of all key heads, one head at a time."""
    return zip(*(x.unbind() for x in of_all), strict=True)


def _causal_bias(
    block: _Block,
    group: int,
    window: int | None,
    dtype: torch.dtype,
    plan: AttentionPlan,
    by_key: bool = False,
) -> Tensor:
    """0 where a row sees a masked key of its block and -inf elsewhere, (rows, masked keys).

    The transposed where `by_key`. Blocks of a shape share one, kept as long as the plan is.
    """
    rows, keys = block.rows.stop - block.rows.start, block.masked.stop - block.masked.start
    kind = (rows, keys, block.ahead, window, group, dtype, by_key)
    if kind not in plan.masks:
        position = torch.arange(rows // group).repeat_interleave(group) + block.ahead - 1
        distance = position[:, None] - torch.arange(keys)
        visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        bias = torch.zeros(rows, keys, dtype=dtype).masked_fill_(~visible, float("-inf"))
        plan.masks[kind] = bias.t().contiguous() if by_key else bias
    return plan.masks[kind]
