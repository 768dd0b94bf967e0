"""What else a native file may be: fields that no shape tells, and other values they may have.

A native file says nothing of its heads (but v3's), rotary base or experts per token. A wrong value
loads, and gives wrong logits: only the likelihood of real text tells. The norms' epsilon is left
out, since no likelihood is fine enough to tell 1e-5 from 1e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.models.minimind.recognise import Dialect

_HEADS = ("num_attention_heads", "num_key_value_heads")


def open_fields(dialect: Dialect) -> dict[str, Any]:
    """Fields of a native file that no shape tells, and the values that they have been given.

    There are none without a generation, where `config.json` says all.
    """
    if dialect.generation is None:
        return {}
    names = (
        ["rope_theta"] if dialect.name.startswith("v3") else ["num_attention_heads", "rope_theta"]
    )
    names += ["num_experts_per_tok", "norm_topk_prob"] if dialect.moe else []
    return {name: dialect.fields[name] for name in names}


def alternatives(dialect: Dialect) -> list[dict[str, Any]]:
    """Overrides under `model.config` that read a native file otherwise, one field each.

    Values are those of any generation, and numbers of heads that models of this size have; some
    may not fit the file's shapes.
    """
    values: dict[str, set[Any]] = {
        "num_attention_heads": {4, 8, 16, 32},
        "rope_theta": {g.defaults["rope_theta"] for g in GENERATIONS.values()},
        "num_experts_per_tok": {1, 2, 4},
        "norm_topk_prob": {True, False},
    }
    readings: list[dict[str, Any]] = []
    generation = dialect.generation
    if generation is not None and generation.name in ("v1", "v2a"):
        readings.append({"generation": "v2a" if generation.name == "v1" else "v1"})
    for name, value in open_fields(dialect).items():
        readings += [{name: other} for other in sorted(values[name] - {value})]
    return readings


def changed(
    dialect: Dialect, overrides: Mapping[str, Any], change: Mapping[str, Any]
) -> dict[str, Any]:
    """Overrides with a change in them, whatever names they had for the fields that it decides."""
    generation = dialect.generation
    aliases = {} if generation is None else generation.aliases
    names = {*change, *(_HEADS if "num_attention_heads" in change else ())}
    rest = {k: v for k, v in overrides.items() if aliases.get(k, k) not in names}
    return {**rest, **change}
