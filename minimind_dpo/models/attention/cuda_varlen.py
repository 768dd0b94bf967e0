"""Planned attention on CUDA as one variable-length kernel a layer, where the kernel can do it.

The kernel is flash attention by way of `torch.nn.attention.varlen.varlen_attn`: T packed queries
and a gathered list of keys, each sequence causal with its last query aligned to its last key, which
is what a plan says. It takes half precision only, on cards of compute capability 8.0 and newer.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.attention import varlen

from minimind_dpo.batch import AttentionPlan

log = logging.getLogger(__name__)

CAPABILITY: Final = (8, 0)
WIDEST: Final = 256
NAMES_GROUPS: Final = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters
"""Whether this torch's kernel is told of grouped heads; that of 2.11 groups them by itself."""
_HALF: Final = (torch.float16, torch.bfloat16)


def on_cuda(tensor: Tensor) -> bool:
    """Whether a tensor is on a CUDA device."""
    return tensor.device.type == "cuda"


def in_autocast_dtype(*tensors: Tensor) -> list[Tensor]:
    """Cast as autocast casts the inputs of the attention that it knows.

    Norms of queries and keys, and rotations by float32 angles, give float32 under autocast.
    """
    if not torch.is_autocast_enabled("cuda"):
        return list(tensors)
    dtype = torch.get_autocast_dtype("cuda")
    return [x.to(dtype) for x in tensors]


def takes_varlen(query: Tensor, value: Tensor, softcap: float | None, dropout: float) -> bool:
    """Whether the variable-length kernel takes these tensors; says so once.

    Args:
        query: (1, heads, T, head_dim) on a CUDA device.
        value: (1, kv_heads, T, value_dim).
        softcap: Of the scores, None for none.
        dropout: Of the weights.
    """
    widths = (query.shape[-1], value.shape[-1])
    obstacle = _obstacle(query.dtype, *widths, softcap is not None, dropout > 0.0, _card())
    if not torch.compiler.is_compiling():
        _tell_once(obstacle)
    return obstacle is None


def has_flash(dtype: torch.dtype) -> bool:
    """Whether flash attention takes a dtype on the current device."""
    *capability, built = _card()
    return dtype in _HALF and tuple(capability) >= CAPABILITY and built


@torch.compiler.assume_constant_result
def _card() -> tuple[int, int, bool]:
    """Compute capability of the current device, and whether torch has flash attention for it."""
    return *torch.cuda.get_device_capability(), torch.backends.cuda.is_flash_attention_available()


def _obstacle(
    dtype: torch.dtype,
    width: int,
    value_width: int,
    capped: bool,
    dropped: bool,
    card: tuple[int, int, bool],
) -> str | None:
    """What keeps tensors from the variable-length kernel; None where nothing does."""
    if dtype not in _HALF:
        return f"{dtype} is not half precision"
    if card[:2] < CAPABILITY:
        return f"the card's compute capability {card[0]}.{card[1]} is below 8.0"
    if not card[2]:
        return "this build of torch has no flash attention"
    if width % 8 > 0 or width > WIDEST:
        return f"head size {width} is no multiple of 8 up to {WIDEST}"
    if value_width != width:
        return f"values are {value_width} wide, queries {width}"
    if capped:
        return "scores are capped"
    return "attention weights are dropped" if dropped else None


@functools.cache
def _tell_once(obstacle: str | None) -> None:
    way = "one variable-length kernel a layer"
    log.info(f"Attention: {way if obstacle is None else f'one call a sequence, since {obstacle}'}")


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
    keys, values = (x[0].transpose(0, 1) for x in (key, value))  # (T, kv_heads, head_dim)
    if plan.shares:
        keys = keys.index_select(0, plan.key_index)  # (sum of key lengths, kv_heads, head_dim)
        values = values.index_select(0, plan.key_index)
    grouped: dict[str, Any] = {}
    if query.shape[1] != key.shape[1] and NAMES_GROUPS:
        grouped["enable_gqa"] = True
    out = varlen.varlen_attn(
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
