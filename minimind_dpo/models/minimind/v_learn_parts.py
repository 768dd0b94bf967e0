"""Configuration and layers of the v_learn architecture; `v_learn` puts them together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class VLearnConfig(PreTrainedConfig):
    """Configuration of `VLearnForCausalLM`; the defaults are the original's, dropout apart.

    Attributes are named as transformers names them; `rope_base` is the base of the rotary
    frequencies, apart from `rope_theta` because the formula is another one.
    """

    model_type = "minimind_v_learn"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 6400
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int | None = None
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-6
    rope_base: float = 1e5
    hidden_act: str = "silu"
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    ffn_dropout: float = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)


class VLearnRMSNorm(nn.Module):
    """x * weight / sqrt(mean(x^2) + eps), computed in float32 or wider."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight * scale).to(x.dtype)


def rotary_angles(position_ids: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position and rotary pair.

    Args:
        position_ids: (B, T).
        head_dim: Even.
        base: Of the frequencies, base ** -(2i) for pair i.

    Returns:
        float32 (B, 1, T, head_dim / 2), twice.
    """
    # NOTE: base ** 2i overflows float32 from the fifth pair on; 1 / inf = 0 is what the original
    # computes as well, so those pairs stand still.
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    frequencies = 1.0 / base**exponents
    angles = position_ids[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (0, 1), (2, 3), ... of the last dimension of x (B, heads, T, head_dim)."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention step by step, for `attn_implementation="eager"`.

    Args:
        module: The attention layer.
        query: (B, heads, T, head_dim).
        key: (B, kv_heads, S, head_dim).
        value: (B, kv_heads, S, head_dim).
        attention_mask: Added to the scores, (B, 1, T, S), or None.
        scaling: Factor on the scores.
        dropout: Probability with which a weight is dropped.
        kwargs: Unused.

    Returns:
        (B, T, heads, head_dim) and the weights (B, heads, T, S).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class VLearnAttention(nn.Module):
    """Grouped-query attention with biases and interleaved rotary positions."""

    def __init__(self, config: VLearnConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.head_dim is not None
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        query, key = (
            heads * self.head_dim
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(config.hidden_size, query)
        self.k_proj = nn.Linear(config.hidden_size, key)
        self.v_proj = nn.Linear(config.hidden_size, key)
        self.o_proj = nn.Linear(query, config.hidden_size)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend: (B, T, hidden) to (B, T, hidden), and weights where the function gives them."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        cos, sin = position_embeddings
        query, key = rotate_pairs(query, cos, sin), rotate_pairs(key, cos, sin)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        output = self.o_proj(output.flatten(-2))
        return self.residual_dropout(output), weights


class VLearnMLP(nn.Module):
    """Gated feed-forward network with biases; dropout sits before the last projection."""

    def __init__(self, config: VLearnConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        return self.down_proj(self.dropout(self.activation(self.gate_proj(x)) * self.up_proj(x)))
