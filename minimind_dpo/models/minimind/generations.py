"""What each MiniMind generation is like: names, classes, defaults, in one table.

| | v_learn | v1 | v2a | v2 | v3 |
|---|---|---|---|---|---|
| rotary pairs | interleaved | interleaved | interleaved | halves | halves |
| rotary base | 1e5, not divided by d | 1e4 | 1e6 | 1e6 | 1e6 |
| norm eps | 1e-6 | 1e-5 | 1e-5 | 1e-5 | 1e-6 |
| experts per token | - | 2 and 1 shared | 2 and 1 shared | 2 and 1 shared | 1 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Names:
    """How a generation spells its tensors.

    Attributes:
        embedding: Key of the token embedding.
        head: Key of the LM head.
        norm: Key of the last norm.
        layers: What comes before a layer's index.
        attention: Path of the attention module in a layer.
        mlp: Path of the feed-forward module in a layer.
        parts: (our name, its name) of what those modules and the layer hold.
        shared: Path of shared expert number {n} inside the feed-forward module.
        norm_weight: Name of a norm's weight.
        bias: Whether projections have biases.
    """

    embedding: str
    head: str
    norm: str
    layers: str
    attention: str
    mlp: str
    parts: Mapping[str, str]
    shared: str = "shared_experts.{n}"
    norm_weight: str = "weight"
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of MiniMind.

    Attributes:
        name: `v_learn`, `v1`, `v2a`, `v2` or `v3`.
        title: The name people know it by.
        marks: What tells its files: each begins some key or, with a dot before it, stands in one.
        names: Spelling of its tensors.
        classes: (dense, mixture of experts) model type in transformers.
        defaults: Fields that no shape tells, by our names.
        aliases: Its own field names, where they differ from ours.
        tied: Embedding and head are one tensor, written twice.
        interleaved: Rotary pairs are (0, 1), (2, 3), ... where the transformers class pairs halves.
        aux: Rule of its balance loss, and the coefficient with which its DPO script added it.
        absent: Marks that are in no key.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    names: Names
    classes: tuple[str, str | None]
    defaults: Mapping[str, Any]
    aliases: Mapping[str, str] = field(default_factory=dict)
    tied: bool = True
    interleaved: bool = False
    aux: tuple[str, float] = ("per_sequence", 0.0)
    absent: tuple[str, ...] = ()


_PROJECTIONS = {
    name: name
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
}
_NORMS = {name: name for name in ("input_layernorm", "post_attention_layernorm")}

_LLAMA_NAMES = Names(
    embedding="model.embed_tokens.weight",
    head="lm_head.weight",
    norm="model.norm.weight",
    layers="model.layers.",
    attention="self_attn",
    mlp="mlp",
    parts=_PROJECTIONS | _NORMS,
)
_V1_NAMES = Names(
    embedding="tok_embeddings.weight",
    head="output.weight",
    norm="norm.weight",
    layers="layers.",
    attention="attention",
    mlp="feed_forward",
    parts={
        "q_proj": "wq",
        "k_proj": "wk",
        "v_proj": "wv",
        "o_proj": "wo",
        "gate_proj": "w1",
        "up_proj": "w3",
        "down_proj": "w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    },
    shared="shared_experts",
)
_V_LEARN_NAMES = Names(
    embedding="embed.embedding.weight",
    head="lm_head.weight",
    norm="rmsnorm.gamma",
    layers="minimind_dense.blocks.",
    attention="attention",
    mlp="ffn",
    parts=_PROJECTIONS
    | {
        "gate_proj": "gate",
        "input_layernorm": "rmsnorm1",
        "post_attention_layernorm": "rmsnorm2",
    },
    norm_weight="gamma",
    bias=True,
)
_V1_ALIASES = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "max_seq_len": "max_position_embeddings",
    "n_routed_experts": "num_experts",
}


def _defaults(
    heads: int, positions: int, eps: float, theta: float, experts_per_token: int = 2
) -> dict[str, Any]:
    return {
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "num_experts_per_tok": experts_per_token,
        "norm_topk_prob": True,
    }


GENERATIONS: dict[str, Generation] = {
    generation.name: generation
    for generation in (
        Generation(
            "v_learn",
            "MiniMind v-learn",
            ("minimind_dense.",),
            _V_LEARN_NAMES,
            ("minimind_v_learn", None),
            _defaults(8, 1024, 1e-6, 1e5),
            {
                "embed_dim": "hidden_size",
                "block_num": "num_hidden_layers",
                "head_num": "num_attention_heads",
                "kv_head_num": "num_key_value_heads",
                "ffn_dim": "intermediate_size",
                "rmsnorm_eps": "rms_norm_eps",
                "max_seqlen": "max_position_embeddings",
            },
            tied=False,
            interleaved=True,
        ),
        Generation(
            "v1",
            "MiniMind 1",
            ("tok_embeddings.weight",),
            _V1_NAMES,
            ("llama", "granitemoeshared"),
            _defaults(16, 512, 1e-5, 1e4),
            _V1_ALIASES,
            interleaved=True,
        ),
        Generation(
            "v2a",
            "early MiniMind2",
            ("tok_embeddings.weight",),
            _V1_NAMES,
            ("llama", "granitemoeshared"),
            _defaults(8, 8192, 1e-5, 1e6),
            _V1_ALIASES,
            interleaved=True,
        ),
        Generation(
            "v2",
            "MiniMind2",
            ("model.embed_tokens.weight",),
            _LLAMA_NAMES,
            ("llama", "granitemoeshared"),
            _defaults(8, 32768, 1e-5, 1e6),
            {"n_routed_experts": "num_experts"},
            absent=(".q_norm.",),
        ),
        Generation(
            "v3",
            "minimind-3",
            ("model.embed_tokens.weight", ".q_norm."),
            _LLAMA_NAMES,
            ("qwen3", "qwen3_moe"),
            _defaults(8, 32768, 1e-6, 1e6, experts_per_token=1) | {"router_aux_loss_coef": 5e-4},
            aux=("per_batch", 5e-4),
        ),
    )
}
