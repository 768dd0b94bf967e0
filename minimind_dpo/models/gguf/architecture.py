"""Which models llama.cpp computes as transformers does, and what it has to be told of them.

    llama, qwen2, qwen3   the dense generations v1, v2a, v2 and v3, and others of these classes
    qwen3moe              v3's mixture of experts, where every layer has one

llama.cpp has no class like v_learn, whose projections have biases, nor one that adds shared experts
as MiniMind 1 and 2 do. What a class of these may have and llama.cpp does not compute is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from transformers import PreTrainedModel

from minimind_dpo.models.errors import CheckpointError

_ARCHITECTURES: Final = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
}


def architecture_of(model: PreTrainedModel) -> str:
    """llama.cpp's name for the architecture of a model.

    Raises:
        CheckpointError: It has none, or does not compute all that the model does.
    """
    name = type(model).__name__
    if name not in _ARCHITECTURES:
        raise CheckpointError(
            f"format=gguf: llama.cpp has no architecture that computes what {name} does; it has "
            f"those of {', '.join(_ARCHITECTURES)}. Use format=hf or native"
        )
    reasons = list(_differences(model.config))
    if reasons:
        raise CheckpointError(
            f"format=gguf: llama.cpp does not compute what this {name} does: it has "
            f"{'; '.join(reasons)}. Use format=hf or native"
        )
    return _ARCHITECTURES[name]


def _differences(config: Any) -> Iterator[str]:
    """What llama.cpp's architecture of the same name does not have."""
    rope = rope_of(config)
    if config.hidden_act != "silu":
        yield f"hidden_act={config.hidden_act}, and silu is built in"
    if rope.get("rope_type", "default") != "default":
        yield f"rope_type={rope['rope_type']}, which this export does not write"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        yield "a rotation of a part of each head"
    if getattr(config, "mlp_bias", False):
        yield "biases in the feed-forward layers"
    if getattr(config, "attention_bias", False):
        yield "biases in attention"
    if getattr(config, "use_sliding_window", False):
        yield "a sliding window"
    if config.model_type == "qwen3_moe":
        if config.mlp_only_layers or config.decoder_sparse_step != 1:
            yield "layers without experts"
        if not config.norm_topk_prob and config.num_experts_per_tok > 1:
            yield "expert weights that are not normalised"


def rope_of(config: Any) -> dict[str, Any]:
    """The rotation's parameters, `rope_theta` among them."""
    return dict(config.rope_parameters or {})


def head_size(config: Any) -> int:
    """Of one attention head."""
    size = getattr(config, "head_dim", None)
    return int(size or config.hidden_size // config.num_attention_heads)


def metadata(config: Any, architecture: str) -> dict[str, int | float]:
    """Numbers that llama.cpp reads, by their keys without the architecture's name."""
    size = head_size(config)
    numbers: dict[str, int | float] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope_of(config)["rope_theta"]),
        "rope.dimension_count": size,
        "vocab_size": config.vocab_size,
    }
    if architecture == "qwen3moe":
        numbers |= {
            "expert_count": config.num_experts,
            "expert_used_count": config.num_experts_per_tok,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    return numbers
