"""Architecture fields of a native file: read off shapes where possible, else default or override.

Rows of q_proj over rows of k_proj give query heads over key heads, but not how many there are;
only v3 tells, by its per-head norms. What shapes tell, an override may repeat but not contradict.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.minimind import v_learn as v_learn  # makes it known to transformers
from minimind_dpo.models.minimind.generations import Generation

_COMMON = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "use_moe",
)
_EXPERTS = ("num_experts", "num_experts_per_tok", "norm_topk_prob", "n_shared_experts")
_V3_EXPERTS = (
    "num_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "moe_intermediate_size",
    "router_aux_loss_coef",
)
_REALS = ("rms_norm_eps", "rope_theta", "router_aux_loss_coef")
_FLAGS = ("use_moe", "norm_topk_prob")


def known_fields(generation: Generation) -> list[str]:
    """Names that `config` may hold for this generation, its own and transformers'."""
    experts: tuple[str, ...] = ()
    if generation.classes[1] is not None:
        experts = _V3_EXPERTS if generation.name == "v3" else _EXPERTS
    return sorted({*generation.aliases, *_COMMON, *experts, "generation"})


def resolve_fields(
    generation: Generation,
    moe: bool,
    shapes: Mapping[str, torch.Size],
    overrides: Mapping[str, Any],
    where: str,
) -> dict[str, Any]:
    """Every field of the architecture, by transformers' names.

    Args:
        generation: As recognised.
        moe: Whether the file holds experts.
        shapes: Shape of each tensor, by key without wrapper prefix.
        overrides: What the user set under `model.config`, in either spelling.
        where: The file, for messages.

    Raises:
        CheckpointError: An unknown name, a value of the wrong kind, or one that the shapes
            contradict.
    """
    asked = _translate(generation, overrides, where)
    read = _read_shapes(generation, moe, shapes, where)
    for name, (value, spelled) in asked.items():
        if name in read and read[name] != value:
            raise CheckpointError(
                f"{where}: model.config.{spelled}={value}, but the weights in the file have "
                f"{read[name]}. Leave the override out, or name another file"
            )
    fields = {**generation.defaults, **{name: value for name, (value, _) in asked.items()}, **read}
    if "num_attention_heads" not in read:
        _count_heads(generation, fields, asked, shapes, where)
    if moe and not 1 <= fields["num_experts_per_tok"] <= fields["num_experts"]:
        raise CheckpointError(
            f"{where}: model.config.num_experts_per_tok={fields['num_experts_per_tok']} must lie "
            f"between 1 and the {fields['num_experts']} experts of the file"
        )
    if moe and generation.name != "v3" and not fields["norm_topk_prob"]:
        raise CheckpointError(
            f"{where}: model.config.norm_topk_prob=false is not supported for {generation.name}: "
            "its experts' weights are always renormalised. Leave the override out"
        )
    return fields


def _translate(
    generation: Generation, overrides: Mapping[str, Any], where: str
) -> dict[str, tuple[Any, str]]:
    """Overrides by our names: (value, the name as the user spelled it)."""
    known = known_fields(generation)
    unknown = [name for name in overrides if name not in known]
    if unknown:
        raise CheckpointError(
            f"{where}: {generation.name} has no field model.config.{unknown[0]}. "
            f"Known ones: {', '.join(known)}"
        )
    asked: dict[str, tuple[Any, str]] = {}
    for spelled, value in overrides.items():
        name = generation.aliases.get(spelled, spelled)
        if value is None or name == "generation":
            continue
        _check_kind(name, value, spelled, where)
        if name in _REALS:
            value = float(value)  # transformers takes no whole number for one
        if name in asked and asked[name][0] != value:
            raise CheckpointError(
                f"{where}: model.config.{spelled}={value} and "
                f"model.config.{asked[name][1]}={asked[name][0]} mean the same field. Keep one"
            )
        asked[name] = (value, spelled)
    return asked


def _check_kind(name: str, value: Any, spelled: str, where: str) -> None:
    if name in _FLAGS:
        wanted, right = "true or false", isinstance(value, bool)
    elif isinstance(value, bool):
        wanted, right = "a number", False
    elif name in _REALS:
        right = isinstance(value, int | float) and 0 <= value <= sys.float_info.max
        wanted = "a number of 0 or more"
    elif name == "n_shared_experts":
        wanted, right = "a whole number of 0 or more", isinstance(value, int) and value >= 0
    else:
        wanted, right = "a whole number of 1 or more", isinstance(value, int) and value >= 1
    if not right:
        raise CheckpointError(f"{where}: model.config.{spelled}={value!r} must be {wanted}")


def _read_shapes(
    generation: Generation, moe: bool, shapes: Mapping[str, torch.Size], where: str
) -> dict[str, Any]:
    names = generation.names
    layer = names.layers + "0."
    vocab, hidden = _shape(shapes, names.embedding, 2, where)
    read: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": _count_layers(generation, shapes, where),
        "use_moe": moe,
    }
    if moe:
        read |= _read_experts(generation, shapes, where)
    else:
        gate = f"{layer}{names.mlp}.{names.parts['gate_proj']}.weight"
        read["intermediate_size"] = _shape(shapes, gate, 2, where)[0]
    if generation.name == "v3":
        read["head_dim"] = _shape(shapes, f"{layer}self_attn.q_norm.weight", 1, where)[0]
        for heads, part in (("num_attention_heads", "q_proj"), ("num_key_value_heads", "k_proj")):
            rows = _shape(shapes, f"{layer}self_attn.{part}.weight", 2, where)[0]
            read[heads] = rows // read["head_dim"]
    mask = shapes.get(f"{layer}{names.attention}.mask")
    if mask is not None:
        read["max_position_embeddings"] = mask[-1]
    return read


def _read_experts(
    generation: Generation, shapes: Mapping[str, torch.Size], where: str
) -> dict[str, Any]:
    names = generation.names
    mlp = f"{names.layers}0.{names.mlp}."
    gate = f"{names.parts['gate_proj']}.weight"
    width = "moe_intermediate_size" if generation.name == "v3" else "intermediate_size"
    if f"{mlp}experts.gate_up_proj" in shapes:
        experts, rows, _ = _shape(shapes, f"{mlp}experts.gate_up_proj", 3, where)
        return {"num_experts": experts, width: rows // 2, "fused_experts": True}
    read: dict[str, Any] = {
        "num_experts": _count(shapes, mlp + r"experts\.(\d+)\."),
        width: _shape(shapes, f"{mlp}experts.0.{gate}", 2, where)[0],
    }
    if generation.name != "v3":
        alone = f"{mlp}shared_experts.{gate}" in shapes
        read["n_shared_experts"] = 1 if alone else _count(shapes, mlp + r"shared_experts\.(\d+)\.")
    return read


def _shape(
    shapes: Mapping[str, torch.Size], key: str, dimensions: int, where: str
) -> tuple[int, ...]:
    if key not in shapes:
        raise CheckpointError(f"{where}: key {key} is missing, so the file is not whole")
    if len(shapes[key]) != dimensions or 0 in shapes[key]:
        raise CheckpointError(
            f"{where}: {key} has shape {tuple(shapes[key])}, not {dimensions} dimension(s)"
        )
    return shapes[key]


def _count_layers(generation: Generation, shapes: Mapping[str, torch.Size], where: str) -> int:
    prefix = generation.names.layers
    found = re.compile(re.escape(prefix) + r"(\d+)\.")
    layers = {int(match[1]) for key in shapes if (match := found.match(key))}
    if gaps := set(range(len(layers))) - layers:
        raise CheckpointError(
            f"{where}: {len(layers)} layers are numbered up to {max(layers)}, and "
            f"{prefix}{min(gaps)} is missing, so the file is not whole"
        )
    return len(layers)


def _count(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    found = re.compile(pattern)
    return len({match[1] for key in shapes if (match := found.match(key))})


def _count_heads(
    generation: Generation,
    fields: dict[str, Any],
    asked: Mapping[str, tuple[Any, str]],
    shapes: Mapping[str, torch.Size],
    where: str,
) -> None:
    """Fill in query heads, key heads and head size, which only the ratio of rows constrains."""
    names = generation.names
    rows = []
    for part in ("q_proj", "k_proj"):
        key = f"{names.layers}0.{names.attention}.{names.parts[part]}.weight"
        rows.append(_shape(shapes, key, 2, where)[0])
    query, key_rows = rows
    if "num_attention_heads" not in asked and "num_key_value_heads" in asked:
        fields["num_attention_heads"] = asked["num_key_value_heads"][0] * query // key_rows
    heads = fields["num_attention_heads"]
    fields.setdefault("num_key_value_heads", heads * key_rows // query)
    kv_heads = fields["num_key_value_heads"]
    if (
        query % heads
        or (query // heads) % 2
        or kv_heads < 1
        or kv_heads * query != heads * key_rows
        or heads % kv_heads
    ):
        spelled = [
            f"model.config.{asked[name][1]}={asked[name][0]}"
            for name in ("num_attention_heads", "num_key_value_heads")
            if name in asked
        ]
        source = " and ".join(spelled) or f"{heads} heads, the default of {generation.name},"
        raise CheckpointError(
            f"{where}: {source} cannot be: q_proj has {query} rows and k_proj {key_rows}, which "
            "must be an even head size times the heads and the key-value heads. Set "
            "model.config.num_attention_heads to the number the model was trained with"
        )
    if fields.setdefault("head_dim", query // heads) != query // heads:
        raise CheckpointError(
            f"{where}: model.config.head_dim={fields['head_dim']}, but {query} rows over {heads} "
            f"heads make {query // heads}. Leave the override out"
        )


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
    settings |= {"attention_dropout": dropout, "tie_word_embeddings": generation.tied}
    settings |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    # v3's experts have a width of their own; the dense one is then a field without tensors.
    settings["intermediate_size"] = fields.get("intermediate_size", 4 * fields["hidden_size"])
    if model_type == "minimind_v_learn":
        settings |= {"residual_dropout": dropout, "ffn_dropout": dropout}
        settings["rope_base"] = fields["rope_theta"]
    else:
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
