"""Experts of a mixture in the precision of autocast.

transformers' grouped product of experts is no operator that autocast casts, so under `bf16-mixed`
and `16-mixed` experts would run in float32; on CUDA, torch then has a product for each expert, and
the host waits for their sizes. Cast here, bfloat16 takes one grouped kernel without a wait. torch
has no such kernel for float16: there the host still waits.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

AUTOCAST_EXPERTS: Final = "grouped_mm_under_autocast"
"""Name among transformers' implementations of experts."""


def use_autocast_experts(model: PreTrainedModel) -> None:
    """Let experts follow autocast, in a model that runs them by transformers' grouped products."""
    if getattr(model.config, "_experts_implementation", None) == "grouped_mm":
        ALL_EXPERTS_FUNCTIONS.register(AUTOCAST_EXPERTS, experts_forward)
        model.set_experts_implementation(AUTOCAST_EXPERTS)


class _Cast:
    """A module of experts, whose tensors are read in another precision."""

    def __init__(self, experts: nn.Module, dtype: torch.dtype) -> None:
        self.experts, self.precision = experts, dtype

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.experts, name)
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(self.precision) if floating else value


def _is_aligned(experts: nn.Module) -> bool:
    """Whether rows of weights are multiples of 16 bytes in half precision, as the product wants."""
    shapes = [weight.shape[1:] for weight in experts.parameters() if weight.dim() == 3]
    return all(size % 8 == 0 for shape in shapes for size in shape)


def experts_forward(
    experts: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """What `grouped_mm_experts_forward` computes, in autocast's precision where that is on.

    Widths that are no multiple of 8 have no product in half precision, and stay as they are.

    Args:
        experts: A module of transformers with the weights of all experts of a layer.
        hidden_states: (T, hidden).
        top_k_index: int64 (T, k), the experts chosen for each token.
        top_k_weights: (T, k), their weights.

    Returns:
        (T, hidden) in the dtype of `hidden_states`.
    """
    device = hidden_states.device.type
    if not torch.is_autocast_enabled(device) or not _is_aligned(experts):
        return grouped_mm_experts_forward(experts, hidden_states, top_k_index, top_k_weights)
    dtype = torch.get_autocast_dtype(device)
    cast: Any = _Cast(experts, dtype)
    output = grouped_mm_experts_forward(cast, hidden_states.to(dtype), top_k_index, top_k_weights)
    return output.to(hidden_states.dtype)
