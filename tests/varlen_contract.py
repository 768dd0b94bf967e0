"""CUDA's variable-length attention kernel by its contract, on any device and in any precision."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def by_contract(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool | None = None,
) -> Tensor:
    """Query i of L_q sees key j of L_k where -left <= j - (i + L_k - L_q) <= right; -1 is open."""
    assert q_offsets.dtype == k_offsets.dtype == torch.int32
    assert enable_gqa is not False or q.shape[1] == k.shape[1]
    spans_q, spans_k = (list(itertools.pairwise(x.tolist())) for x in (q_offsets, k_offsets))
    assert spans_q[-1][1] == len(q)
    assert spans_k[-1][1] == len(k) == len(v)
    assert max_q >= max(end - start for start, end in spans_q)
    assert max_k >= max(end - start for start, end in spans_k)
    group = q.shape[1] // k.shape[1]
    left, right = window_size
    rows = []
    for (q_start, q_end), (k_start, k_end) in zip(spans_q, spans_k, strict=True):
        keys, values = (x[k_start:k_end].repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[q_start:q_end], keys)
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        last = torch.arange(k_end - k_start - (q_end - q_start), k_end - k_start)[:, None]
        distance = torch.arange(k_end - k_start)[None, :] - last
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        hidden |= (distance < -left) if left >= 0 else hidden
        hidden |= (distance > right) if right >= 0 else hidden
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        rows.append(torch.einsum("hij,jhd->ihd", weights, values))
    return torch.cat(rows)
