"""The transformers configuration of a native model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from minimind_dpo.models.minimind import v_learn as v_learn  # makes it known to transformers
from minimind_dpo.models.minimind.architecture import TIE
from minimind_dpo.models.minimind.generations import Generation
from minimind_dpo.models.minimind.state_dict import is_tied


def transformers_config(
    generation: Generation, moe: bool, fields: Mapping[str, Any], dropout: float
) -> PreTrainedConfig:
    """The transformers configuration of a native model."""
    model_type = generation.classes[1 if moe else 0]
    assert model_type is not None, "v_learn has no experts"
    same = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    settings: dict[str, Any] = {name: fields[name] for name in same}
    # NOTE: no pad_token_id: torch's embedding would then drop the gradient of that token.
    settings |= {"attention_dropout": dropout, TIE: is_tied(generation, fields)}
    settings |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    # v3's experts have a width of their own; the dense one is then a field without tensors.
    settings["intermediate_size"] = fields.get("intermediate_size", 4 * fields["hidden_size"])
    if model_type == "minimind_v_learn":
        settings |= {"residual_dropout": dropout, "ffn_dropout": dropout}
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": fields["rope_theta"]}
    if moe:
        settings |= {name: fields[name] for name in ("num_experts_per_tok", "num_experts")}
    if model_type == "qwen3_moe":
        for name in ("moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef"):
            settings[name] = fields[name]
    if model_type == "granitemoeshared":
        settings["num_local_experts"] = settings.pop("num_experts")
        settings["shared_intermediate_size"] = (
            fields["n_shared_experts"] * fields["intermediate_size"]
        )
        settings["attention_multiplier"] = fields["head_dim"] ** -0.5
    return AutoConfig.for_model(model_type, **settings)
