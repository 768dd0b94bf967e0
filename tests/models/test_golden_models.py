"""Every generation against the numbers of its own original program."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_support import HUB, NATIVE, Golden

from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.models.load import load_model

CLASSES = {
    "v_learn": "VLearnForCausalLM",
    "v1": "LlamaForCausalLM",
    "v1_moe": "GraniteMoeSharedForCausalLM",
    "v2a": "LlamaForCausalLM",
    "v2a_moe": "GraniteMoeSharedForCausalLM",
    "v2": "LlamaForCausalLM",
    "v2_moe": "GraniteMoeSharedForCausalLM",
    "v3": "Qwen3ForCausalLM",
    "v3_moe": "Qwen3MoeForCausalLM",
}


@pytest.mark.parametrize("name", NATIVE + HUB)
def test_logits_are_those_of_the_original_program(
    name: str, golden: Callable[[str], Golden]
) -> None:
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    assert loaded.model.dtype == torch.float32
    assert not loaded.model.training
    with torch.no_grad():
        logits = loaded.model(input_ids=g.input_ids).logits
    assert (logits[:, g.data["positions"]] - g.logits).abs().max() < 2e-5
    logps = logits[:, :-1].log_softmax(-1).gather(-1, g.input_ids[:, 1:, None]).squeeze(-1)
    assert (logps - torch.tensor(g.data["next_token_logp"])).abs().max() < 2e-5


@pytest.mark.parametrize("name", NATIVE)
def test_generation_class_size_and_dtype_are_recognised(
    name: str, golden: Callable[[str], Golden]
) -> None:
    g = golden(name)
    dialect = load_model(g.path, config=g.config, tokenizer=False).dialect
    short = name.removesuffix("_half").removesuffix("_top1").removesuffix("_top2")
    short = short.removesuffix("_fused")
    assert dialect.name == short
    assert dialect.class_name == CLASSES[short]
    assert str(dialect.file_dtype) == f"torch.{g.data['stored_dtype']}"
    if "n_params" in g.data:
        assert dialect.num_parameters == g.data["n_params"]


@pytest.mark.parametrize("name", ["v_learn", "v2", "v3", "v3_moe_top1"])
def test_padding_on_the_left_changes_nothing(name: str, golden: Callable[[str], Golden]) -> None:
    g = golden(name)
    model = load_model(g.path, config=g.config, tokenizer=False).model
    ids = g.input_ids[:1, :9]
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    mask = torch.tensor([[0] * 4 + [1] * 9])
    positions = torch.tensor([[0] * 4 + list(range(9))])
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        shifted = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits
    assert (shifted[:, 4:] - plain).abs().max() < 1e-5


def test_v2a_and_v1_differ_by_the_rotary_base_alone(golden: Callable[[str], Golden]) -> None:
    g = golden("v2a")
    as_v2a = load_model(g.path, config=g.config, tokenizer=False).model
    config = {**g.config, "generation": "v1", "rope_theta": 1e6}
    as_v1 = load_model(g.path, config=config, tokenizer=False).model
    with torch.no_grad():
        assert torch.equal(as_v2a(g.input_ids).logits, as_v1(g.input_ids).logits)


def test_heads_not_named_come_from_the_generation(golden: Callable[[str], Golden]) -> None:
    # The tiny v2 has 4 heads of 16; MiniMind2's default of 8 divides its 64 rows as well.
    g = golden("v2")
    config = load_model(g.path, tokenizer=False).model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 4, 8)


def test_v3_tells_its_heads_itself(golden: Callable[[str], Golden]) -> None:
    config = load_model(golden("v3").path, tokenizer=False).model.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)


def test_experts_per_token_can_be_overridden(golden: Callable[[str], Golden]) -> None:
    g = golden("v3_moe_top2")
    one = load_model(g.path, tokenizer=False).model
    assert one.config.num_experts_per_tok == 1
    with torch.no_grad():
        logits = one(input_ids=g.input_ids).logits[:, g.data["positions"]]
    assert (logits - g.logits).abs().max() > 1e-2


def test_a_generation_that_the_keys_rule_out_is_refused(golden: Callable[[str], Golden]) -> None:
    with pytest.raises(CheckpointError, match=r"generation=v3, but .* v2"):
        load_model(golden("v2").path, config={"generation": "v3"}, tokenizer=False)
