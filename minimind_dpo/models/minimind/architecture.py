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

from minimind_dpo.models.errors import CheckpointError
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
TIE = "tie_word_embeddings"
_FROM_CONFIG = "config.json: "
_REALS = ("rms_norm_eps", "rope_theta", "router_aux_loss_coef")
_FLAGS = ("use_moe", "norm_topk_prob", TIE)


def known_fields(generation: Generation) -> list[str]:
    """Names that `config` may hold for this generation, its own and transformers'."""
    experts: tuple[str, ...] = ()
    if generation.classes[1] is not None:
        experts = _V3_EXPERTS if generation.name == "v3" else _EXPERTS
    tie = (TIE,) if generation.name == "v3" else ()
    return sorted({*generation.aliases, *_COMMON, *experts, *tie, "generation"})


def resolve_fields(
    generation: Generation,
    moe: bool,
    shapes: Mapping[str, torch.Size],
    overrides: Mapping[str, Any],
    config_fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every field of the architecture, by transformers' names.

    Args:
        generation: As recognised.
        moe: Whether the file holds experts.
        shapes: Shape of each tensor, by key without wrapper prefix.
        overrides: What the user set under `model.config`, in either spelling.
        config_fields: What a folder's `config.json` says, likewise; an override has precedence.

    Raises:
        CheckpointError: An unknown name, a value of the wrong kind, or one that the shapes
            contradict.
    """
    settings = {
        **_translate(generation, config_fields or {}, _FROM_CONFIG),
        **_translate(generation, overrides, "model.config."),
    }
    by_shape = _read_shapes(generation, moe, shapes)
    for name, (value, label) in settings.items():
        if name in by_shape and by_shape[name] != value:
            advice = "Leave the override out, or name another file"
            if label.startswith(_FROM_CONFIG):
                advice = "The weights do not belong to this config.json"
            raise CheckpointError(
                f"{label}={value}, but the weights in the file have {by_shape[name]}. {advice}"
            )
    values = {name: value for name, (value, _) in settings.items()}
    fields = {**generation.defaults, **values, **by_shape}
    if "num_attention_heads" not in by_shape:
        _count_heads(generation, fields, settings, shapes)
    if moe:
        _check_experts(generation, fields)
    return fields


def _check_experts(generation: Generation, fields: Mapping[str, Any]) -> None:
    chosen, experts = fields["num_experts_per_tok"], fields["num_experts"]
    if not 1 <= chosen <= experts:
        raise CheckpointError(
            f"model.config.num_experts_per_tok={chosen} must lie between 1 and the "
            f"{experts} experts of the file"
        )
    if generation.name == "v3":
        return
    if not fields["norm_topk_prob"]:
        raise CheckpointError(
            f"norm_topk_prob=false is not supported for {generation.name}: its experts' "
            "weights are always renormalised here"
        )
    if chosen == 1:
        raise CheckpointError(
            f"num_experts_per_tok=1 is not supported for {generation.name}: it does not "
            "renormalise the weight of a single expert, and here weights always are"
        )


def _translate(
    generation: Generation, values: Mapping[str, Any], prefix: str
) -> dict[str, tuple[Any, str]]:
    """Fields by our names: (value, the name as it was spelled, behind where it is from)."""
    names = known_fields(generation)
    unknown = [name for name in values if name not in names]
    if unknown:
        raise CheckpointError(
            f"{generation.name} has no field {prefix}{unknown[0]}. Known ones: {', '.join(names)}"
        )
    settings: dict[str, tuple[Any, str]] = {}
    for spelling, value in values.items():
        name, label = generation.aliases.get(spelling, spelling), prefix + spelling
        if value is None or name == "generation":
            continue
        _check_kind(name, value, label)
        if name in _REALS:
            value = float(value)  # transformers takes no whole number for one
        if name in settings and settings[name][0] != value:
            raise CheckpointError(
                f"{label}={value} and {settings[name][1]}={settings[name][0]} mean the "
                "same field. Keep one"
            )
        settings[name] = (value, label)
    return settings


def _check_kind(name: str, value: Any, label: str) -> None:
    if name in _FLAGS:
        requirement, valid = "true or false", isinstance(value, bool)
    elif isinstance(value, bool):
        requirement, valid = "a number", False
    elif name in _REALS:
        valid = isinstance(value, int | float) and 0 <= value <= sys.float_info.max
        requirement = "a number of 0 or more"
    elif name == "n_shared_experts":
        requirement, valid = "a whole number of 0 or more", isinstance(value, int) and value >= 0
    else:
        requirement, valid = "a whole number of 1 or more", isinstance(value, int) and value >= 1
    if not valid:
        raise CheckpointError(f"{label}={value!r} must be {requirement}")


def _read_shapes(
    generation: Generation, moe: bool, shapes: Mapping[str, torch.Size]
) -> dict[str, Any]:
    names = generation.names
    layer = names.layers + "0."
    vocab, hidden = _shape(shapes, names.embedding, 2)
    by_shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": _count_layers(generation, shapes),
        "use_moe": moe,
    }
    if moe:
        by_shape |= _read_experts(generation, shapes)
    else:
        gate = f"{layer}{names.mlp}.{names.parts['gate_proj']}.weight"
        by_shape["intermediate_size"] = _shape(shapes, gate, 2)[0]
    if generation.name == "v3":
        by_shape["head_dim"] = _shape(shapes, f"{layer}self_attn.q_norm.weight", 1)[0]
        for heads, part in (("num_attention_heads", "q_proj"), ("num_key_value_heads", "k_proj")):
            rows = _shape(shapes, f"{layer}self_attn.{part}.weight", 2)[0]
            by_shape[heads] = rows // by_shape["head_dim"]
    mask = f"{layer}{names.attention}.mask"
    if mask in shapes:
        by_shape["max_position_embeddings"] = _shape(shapes, mask, 4)[-1]
    return by_shape


def _read_experts(generation: Generation, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    names = generation.names
    mlp = f"{names.layers}0.{names.mlp}."
    gate = f"{names.parts['gate_proj']}.weight"
    width = "moe_intermediate_size" if generation.name == "v3" else "intermediate_size"
    if f"{mlp}experts.gate_up_proj" in shapes:
        experts, rows, _ = _shape(shapes, f"{mlp}experts.gate_up_proj", 3)
        return {"num_experts": experts, width: rows // 2, "fused_experts": True}
    by_shape: dict[str, Any] = {
        "num_experts": _count(shapes, mlp + r"experts\.(\d+)\."),
        width: _shape(shapes, f"{mlp}experts.0.{gate}", 2)[0],
    }
    if generation.name != "v3":
        alone = f"{mlp}shared_experts.{gate}" in shapes
        count = _count(shapes, mlp + r"shared_experts\.(\d+)\.")
        by_shape["n_shared_experts"] = 1 if alone else count
    return by_shape


def _shape(shapes: Mapping[str, torch.Size], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in shapes:
        raise CheckpointError(f"key {key} is missing, so the file is not whole")
    if len(shapes[key]) != dimensions or 0 in shapes[key]:
        raise CheckpointError(
            f"{key} has shape {tuple(shapes[key])}, not {dimensions} dimension(s)"
        )
    return shapes[key]


def _count_layers(generation: Generation, shapes: Mapping[str, torch.Size]) -> int:
    prefix = generation.names.layers
    # Numbers of more digits are no layers: such a key is left over, and refused as that.
    numbered = re.compile(re.escape(prefix) + r"(\d{1,6})\.")
    layers = {int(match[1]) for key in shapes if (match := numbered.match(key))}
    if gaps := set(range(len(layers))) - layers:
        raise CheckpointError(
            f"{len(layers)} layers are numbered up to {max(layers)}, and "
            f"{prefix}{min(gaps)} is missing, so the file is not whole"
        )
    return len(layers)


def _count(shapes: Mapping[str, torch.Size], pattern: str) -> int:
    numbered = re.compile(pattern)
    return len({match[1] for key in shapes if (match := numbered.match(key))})


def _count_heads(
    generation: Generation,
    fields: dict[str, Any],
    settings: Mapping[str, tuple[Any, str]],
    shapes: Mapping[str, torch.Size],
) -> None:
    """Fill in query heads, key heads and head size, which only the ratio of rows constrains."""
    names = generation.names
    rows = []
    for part in ("q_proj", "k_proj"):
        key = f"{names.layers}0.{names.attention}.{names.parts[part]}.weight"
        rows.append(_shape(shapes, key, 2)[0])
    query, key_rows = rows
    if "num_attention_heads" not in settings and "num_key_value_heads" in settings:
        fields["num_attention_heads"] = settings["num_key_value_heads"][0] * query // key_rows
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
        labels = [
            f"{settings[name][1]}={settings[name][0]}"
            for name in ("num_attention_heads", "num_key_value_heads")
            if name in settings
        ]
        source = " and ".join(labels) or f"{heads} heads, the default of {generation.name},"
        raise CheckpointError(
            f"{source} cannot be: q_proj has {query} rows and k_proj {key_rows}, which "
            "must be an even head size times the heads and the key-value heads. Set "
            "model.config.num_attention_heads to the number the model was trained with"
        )
    if fields.setdefault("head_dim", query // heads) != query // heads:
        raise CheckpointError(
            f"model.config.head_dim={fields['head_dim']}, but {query} rows over {heads} "
            f"heads make {query // heads}. Leave the override out"
        )
