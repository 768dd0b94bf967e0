"""The sizes that MiniMind's authors publish, from our defaults alone."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS


@pytest.mark.parametrize(
    ("name", "moe", "hidden", "layers", "kv_heads", "millions"),
    [
        ("v1", False, 512, 8, 8, "26.878"),
        ("v1", False, 768, 16, 8, "108.750"),
        ("v1", True, 512, 8, 8, "96.101"),
        ("v2a", False, 512, 8, 2, "25.830"),
        ("v2", False, 512, 8, 2, "25.830"),
        ("v2", False, 768, 16, 2, "104.031"),
        ("v2", True, 640, 8, 2, "145.030"),
        ("v3", False, 768, 8, 4, "63.912"),
        ("v3", True, 768, 8, 4, "198.417"),
    ],
)
def test_default_fields_give_the_published_number_of_parameters(
    name: str, moe: bool, hidden: int, layers: int, kv_heads: int, millions: str
) -> None:
    generation = GENERATIONS[name]
    wide = math.pi * hidden if name == "v3" else int(8 * hidden / 3)
    ffn = 64 * math.ceil(wide / 64)
    fields = {
        **generation.defaults,
        "vocab_size": 6400,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // generation.defaults["num_attention_heads"],
        "intermediate_size": ffn,
        "moe_intermediate_size": ffn,
        "num_experts": 4,
        "n_shared_experts": 1,
    }
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(generation, moe, fields, 0.0))
    assert f"{model.num_parameters() / 1e6:.3f}" == millions
