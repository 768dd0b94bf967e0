"""The v_learn architecture as a transformers model: the one MiniMind that transformers lacks.

It is a Llama-like decoder with three peculiarities, all kept exactly:

- The residual is added to the normalised input: x = norm(x); x = x + f(x).
- Rotary frequencies are base ** -(2i), not base ** -(2i / d): of pair 0 every position differs,
  the next turns 1e-10 rad a token, and the rest do not turn at all. Pairs are (0, 1), (2, 3), ...
- Every projection and the untied head has a bias.

The original drops attention weights, attention outputs and feed-forward activations with
probability 0.1 while training; here that is off unless asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from minimind_dpo.models.minimind.v_learn_parts import (
    VLearnAttention,
    VLearnConfig,
    VLearnMLP,
    VLearnRMSNorm,
    rotary_angles,
)


class VLearnDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each added to its own normalised input."""

    def __init__(self, config: VLearnConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = VLearnAttention(config, layer_idx)
        self.mlp = VLearnMLP(config)
        self.input_layernorm = VLearnRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = VLearnRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """(B, T, hidden) to (B, T, hidden); keywords go to attention."""
        x = self.input_layernorm(hidden_states)
        x = x + self.self_attn(hidden_states=x, **kwargs)[0]
        x = self.post_attention_layernorm(x)
        return x + self.mlp(x)


class VLearnPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the architecture."""

    config_class = VLearnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["VLearnDecoderLayer"]  # noqa: RUF012 - as transformers declares it
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": VLearnDecoderLayer,
        "attentions": VLearnAttention,
    }


class VLearnModel(VLearnPreTrainedModel):
    """The backbone: token ids to states."""

    def __init__(self, config: VLearnConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            [VLearnDecoderLayer(config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = VLearnRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """States (B, T, hidden) of `input_ids` (B, T); other keywords go to attention.

        Raises:
            ValueError: Both or neither of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past
            position_ids = position_ids.unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        config: Any = self.config
        angles = rotary_angles(position_ids, config.head_dim, config.rope_base)
        hidden_states = inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                position_embeddings=angles,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class VLearnForCausalLM(VLearnPreTrainedModel, GenerationMixin):
    """The backbone and its untied head with bias."""

    def __init__(self, config: VLearnConfig) -> None:
        super().__init__(config)
        self.model = VLearnModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, vocab) of `input_ids` (B, T), or of the last `logits_to_keep` positions."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        states = outputs.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[:, keep, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


AutoConfig.register("minimind_v_learn", VLearnConfig, exist_ok=True)
AutoModel.register(VLearnConfig, VLearnModel, exist_ok=True)
AutoModelForCausalLM.register(VLearnConfig, VLearnForCausalLM, exist_ok=True)
