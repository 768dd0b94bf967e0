"""Planned attention on CUDA as one variable-length kernel a layer, where the kernel can do it.

The kernel is flash attention by way of `torch.nn.attention.varlen.varlen_attn`: T packed queries
and a gathered list of keys, each sequence causal with its last query aligned to its last key, which
is what a plan says. It takes half precision only, on cards of compute capability 8.0 and newer.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Final

import torch
from torch import Tensor

from minimind_dpo.batch import AttentionPlan

CAPABILITY: Final = (8, 0)
WIDEST: Final = 256
_HALF: Final = (torch.float16, torch.bfloat16)


def why_not_varlen(
    query: Tensor, value: Tensor, softcap: float | None, dropout: float
) -> str | None:
    """What keeps these tensors from the variable-length kernel; None where nothing does.

    Args:
        query: (1, heads, T, head_dim) on a CUDA device.
        value: (1, kv_heads, T, value_dim).
        softcap: Of the scores, None for none.
        dropout: Of the weights.
    """
    width = query.shape[-1]
    capability = torch.cuda.get_device_capability(query.device)
    obstacles = {
        f"{query.dtype} is not half precision": query.dtype not in _HALF,
        f"the card's compute capability {capability} is below {CAPABILITY}": (
            capability < CAPABILITY
        ),
        "this build of torch has no flash attention": (
            not torch.backends.cuda.is_flash_attention_available()
        ),
        f"head size {width} is no multiple of 8 up to {WIDEST}": width % 8 > 0 or width > WIDEST,
        f"values are {value.shape[-1]} wide, queries {width}": value.shape[-1] != width,
        "scores are capped": softcap is not None,
        "attention weights are dropped": dropout > 0.0,
    }
    return next((why for why, holds in obstacles.items() if holds), None)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """Attention of T packed tokens by a plan, in one kernel.

    Args:
        query: (1, heads, T, head_dim) in half precision.
        key: (1, kv_heads, T, head_dim), of the same dtype.
        value: (1, kv_heads, T, head_dim), of the same dtype.
        plan: On the same device.
        scaling: Factor on the scores, head_dim ** -0.5 where None.
        window: Keys that a query sees, itself included; None for all.

    Returns:
        (1, T, heads, head_dim).
    """
    from torch.nn.attention.varlen import varlen_attn

    keys, values = (x[0].transpose(0, 1) for x in (key, value))  # (T, kv_heads, head_dim)
    if any(plan.borrowed):
        keys = keys.index_select(0, plan.key_index)  # (sum of key lengths, kv_heads, head_dim)
        values = values.index_select(0, plan.key_index)
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and "enable_gqa" in _keywords():
        grouped["enable_gqa"] = True
    out = varlen_attn(
        query[0].transpose(0, 1),
        keys,
        values,
        plan.query_offsets,
        plan.key_offsets,
        plan.longest_query,
        plan.longest_key,
        scale=scaling,
        # (left, right) reach of each query, aligned at the end; right 0 makes it causal.
        window_size=(-1 if window is None else window - 1, 0),
        **grouped,
    )
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)


@functools.cache
def _keywords() -> frozenset[str]:
    """What this torch's `varlen_attn` takes: 2.11 groups heads without being told."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)
