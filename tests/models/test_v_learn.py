"""The v_learn architecture behaves as transformers' own models do."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minimind_dpo.models.attention.planned import PLANNED
from minimind_dpo.models.minimind.generations import GENERATIONS
from minimind_dpo.models.minimind.state_dict import rules
from minimind_dpo.models.minimind.v_learn import (
    VLearnConfig,
    VLearnForCausalLM,
    VLearnRotaryEmbedding,
)

from .conftest import plan_of

TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
}


@pytest.fixture
def model() -> VLearnForCausalLM:
    torch.manual_seed(0)
    config = AutoConfig.for_model("minimind_v_learn", **TINY, initializer_range=0.3)
    built = AutoModelForCausalLM.from_config(config)
    assert isinstance(built, VLearnForCausalLM)
    return built.eval()


def test_the_default_model_has_the_parameters_of_the_original() -> None:
    with torch.device("meta"):
        model = VLearnForCausalLM(VLearnConfig())
    # 512 x 8: the number that the original prints as 38.075 million.
    assert model.num_parameters() == 38_075_136


def test_rotary_frequencies_are_not_divided_by_the_head_size() -> None:
    rotary = VLearnRotaryEmbedding(VLearnConfig(**TINY | {"head_dim": 12}))
    cos, sin = rotary(torch.zeros(1), torch.tensor([[0, 1, 1000]]))
    assert cos.shape == (1, 3, 12)  # the six pairs twice: dimension i turns with i + 6
    assert sin[0, 1, [0, 6]].tolist() == pytest.approx([math.sin(1.0)] * 2)
    assert sin[0, 2, 1].item() == pytest.approx(1000 * 1e-10)
    assert sin[0, 2, 4].item() == 0.0  # 1e5 ** 8 is beyond float32


def test_rows_of_q_and_k_are_reordered_so_that_pairs_lie_half_a_head_apart() -> None:
    generation = GENERATIONS["v_learn"]
    fields = {"num_hidden_layers": 1, "head_dim": 6}
    found = {rule.target: rule for rule in rules(generation, False, fields)}
    for kind in ("weight", "bias"):
        rule = found[f"model.layers.0.self_attn.q_proj.{kind}"]
        stored = torch.arange(12.0) if kind == "bias" else torch.arange(12.0)[:, None]
        loaded = rule.join([stored])
        # Two heads of six: the pairs (0, 1), (2, 3), (4, 5) become (0, 3), (1, 4), (2, 5).
        assert loaded.flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
        assert torch.equal(rule.split(loaded)[0], stored)


def test_an_export_with_rows_in_the_original_s_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Load the native file beside it"):
        AutoConfig.for_model("minimind_v_learn", **TINY, rope_base=1e5)


def test_the_residual_is_added_to_the_normalised_input(model: VLearnForCausalLM) -> None:
    layer = model.model.layers[0]
    for parameter in (*layer.self_attn.parameters(), *layer.mlp.parameters()):
        torch.nn.init.zeros_(parameter)
    # With both branches silent the layer is two norms: each row has root mean square 1.
    x = torch.randn(1, 3, 16) * 7
    angles = model.model.rotary_emb(x, torch.arange(3)[None])
    out = layer(x, position_embeddings=angles)
    assert out.pow(2).mean(-1).sqrt().flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_eager_and_fused_attention_agree(model: VLearnForCausalLM) -> None:
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        fused = model(input_ids=ids, attention_mask=mask).logits
        model.set_attn_implementation("eager")
        eager = model(input_ids=ids, attention_mask=mask).logits
    seen = mask.bool()
    assert (fused[seen] - eager[seen]).abs().max() < 1e-5


def test_the_cache_changes_nothing(model: VLearnForCausalLM) -> None:
    ids = torch.randint(0, 50, (1, 8))
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        rest = model(input_ids=ids[:, 5:], past_key_values=first.past_key_values)
    assert (torch.cat([first.logits, rest.logits], dim=1) - whole).abs().max() < 1e-5
    assert model(input_ids=ids, use_cache=False).past_key_values is None


def test_planned_attention_sees_what_separate_sequences_see(model: VLearnForCausalLM) -> None:
    prompt, chosen, rejected = torch.randint(0, 50, (3, 5)).unbind()
    with torch.no_grad():
        separate = [
            model(input_ids=torch.cat([prompt, side])[None]).logits[0]
            for side in (chosen, rejected)
        ]
        model.set_attn_implementation(PLANNED)
        packed = model(
            input_ids=torch.cat([prompt, chosen, rejected])[None],
            position_ids=torch.tensor([[*range(10), *range(5, 10)]]),
            plan=plan_of((10, 5), (0, 5)),
            use_cache=False,
        ).logits[0]
    assert (packed[:10] - separate[0]).abs().max() < 1e-5
    assert (packed[10:] - separate[1][5:]).abs().max() < 1e-5


def test_gradient_checkpointing_gives_the_same_gradients(model: VLearnForCausalLM) -> None:
    ids = torch.randint(0, 50, (2, 6))
    model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain = gradients()
    model.activation_checkpointing_enable()
    for one, other in zip(plain, gradients(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_dropout_acts_in_training_only_and_only_if_asked(model: VLearnForCausalLM) -> None:
    ids = torch.randint(0, 50, (1, 6))
    model.train()
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    noisy = VLearnForCausalLM(
        VLearnConfig(**TINY, attention_dropout=0.1, residual_dropout=0.1, ffn_dropout=0.1)
    ).train()
    assert not torch.equal(noisy(input_ids=ids).logits, noisy(input_ids=ids).logits)
    noisy.eval()
    assert torch.equal(noisy(input_ids=ids).logits, noisy(input_ids=ids).logits)


def test_states_of_every_layer_can_be_had(model: VLearnForCausalLM) -> None:
    out = model(input_ids=torch.randint(0, 50, (1, 6)), output_hidden_states=True)
    assert [tuple(h.shape) for h in out.hidden_states] == [(1, 6, 16)] * 3
    assert model.base_model is model.model
    head = model.get_output_embeddings()
    assert head.bias.shape == (50,)
    logits = head(model.model(input_ids=torch.tensor([[1, 2]])).last_hidden_state)
    assert torch.equal(model(input_ids=torch.tensor([[1, 2]])).logits, logits)
    with pytest.raises(ValueError, match="exactly one of"):
        model.model()
