"""The v_learn architecture as a transformers model: the one MiniMind that transformers lacks.

It is Llama with four peculiarities, all kept exactly:

- The residual is added to the normalised input: x = norm(x); x = x + f(x).
- Rotary frequencies are base ** -(2i), not base ** -(2i / d): of pair 0 every position differs,
  the next turns 1e-10 rad a token, and the rest do not turn at all.
- Every projection and the untied head has a bias.
- Besides attention weights, attention outputs and feed-forward activations can be dropped: the
  original does so with probability 0.1 while training; here that is off unless asked for.

The original pairs the rotary dimensions (0, 1), (2, 3), ..., and Llama (0, d/2), (1, d/2 + 1), ...:
the rows of its q and k are reordered as the file is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)


class VLearnConfig(LlamaConfig):
    """Configuration of `VLearnForCausalLM`; the defaults are the original's, dropout apart."""

    model_type = "minimind_v_learn"

    vocab_size: int = 6400
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-6
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    attention_bias: bool = True
    mlp_bias: bool = True
    residual_dropout: float = 0.0
    ffn_dropout: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        if "rope_base" in kwargs:
            raise ValueError(
                "it was exported by a version that ordered the rows of q and k otherwise. Load the "
                "native file beside it, sft_full_512.pth or dpo_512.pth"
            )
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 1e5}
        super().__post_init__(**kwargs)


class VLearnRotaryEmbedding(LlamaRotaryEmbedding):
    """Frequencies that are not divided by the size of a head."""

    @staticmethod
    def compute_default_rope_parameters(config: Any, **kwargs: Any) -> tuple[Tensor, float]:
        """base ** -(2i) of each pair i, float32 (head_dim / 2,), and no further factor."""
        # NOTE: base ** 2i overflows float32 from the fifth pair on; 1 / inf = 0 is what the
        # original computes as well, so those pairs stand still.
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float)
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0


class VLearnAttention(LlamaAttention):
    """Attention whose output can be dropped."""

    def __init__(self, config: VLearnConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(B, T, hidden) to (B, T, hidden), and weights where the function gives them."""
        output, weights = super().forward(hidden_states, *args, **kwargs)
        return self.residual_dropout(output), weights


class VLearnMLP(LlamaMLP):
    """Gated feed-forward network; dropout sits before the last projection."""

    def __init__(self, config: VLearnConfig) -> None:
        super().__init__(config)
        self.dropout = nn.Dropout(config.ffn_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, hidden) to (B, T, hidden)."""
        return self.down_proj(self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


class VLearnDecoderLayer(LlamaDecoderLayer):
    """Attention and feed-forward, each added to its own normalised input."""

    def __init__(self, config: VLearnConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.self_attn = VLearnAttention(config, layer_idx)
        self.mlp = VLearnMLP(config)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, T, hidden) to (B, T, hidden); the rest goes to attention."""
        x = self.input_layernorm(hidden_states)
        x = x + self.self_attn(x, *args, **kwargs)[0]
        x = self.post_attention_layernorm(x)
        return x + self.mlp(x)


class VLearnModel(LlamaModel):
    """The backbone: token ids to states."""

    config_class = VLearnConfig
    _no_split_modules = ["VLearnDecoderLayer"]  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: VLearnConfig) -> None:
        super(LlamaModel, self).__init__(config)  # builds no layers of Llama's
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [VLearnDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = VLearnRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()


class VLearnForCausalLM(LlamaForCausalLM):
    """The backbone and its untied head with bias."""

    config_class = VLearnConfig
    _no_split_modules = ["VLearnDecoderLayer"]  # noqa: RUF012

    def __init__(self, config: VLearnConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = VLearnModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()


AutoConfig.register("minimind_v_learn", VLearnConfig, exist_ok=True)
AutoModel.register(VLearnConfig, VLearnModel, exist_ok=True)
AutoModelForCausalLM.register(VLearnConfig, VLearnForCausalLM, exist_ok=True)
