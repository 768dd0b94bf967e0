"""Balance losses against the originals, and their indifference to padding and layout."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_support import Golden, numbers

from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.load import load_model
from minimind_dpo.models.moe_balance import (
    TokenLayout,
    balance_loss,
    default_aux_coef,
    router_aux_loss,
)

from .conftest import plan_of


def everything(rows: int, columns: int) -> TokenLayout:
    return TokenLayout.rectangle(torch.ones(rows, columns, dtype=torch.long))


# What each original model multiplied its balance loss by while it was trained.
ORIGINAL = {"v2a_moe": 0.1, "v2_moe": 0.01, "v3_moe_top1": 5e-4, "v3_moe_top2": 5e-4}


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_balance_loss_is_that_of_the_original(
    name: str, golden: Callable[[str], Golden]
) -> None:
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    if name == "v3_moe_top2":
        assert loaded.model.config.num_experts_per_tok == 2
    logits = loaded.model.base_model(input_ids=g.input_ids, output_router_logits=True).router_logits
    loss = balance_loss(loaded.dialect, loaded.model.config)
    assert loss is not None
    batch: Any = SimpleNamespace(plan=None, attention_mask=torch.ones_like(g.input_ids))
    total = ORIGINAL[name] * loss(logits, batch)
    assert total.item() == pytest.approx(g.data["aux_loss_train_mode"], rel=1e-5)


@pytest.mark.parametrize("name", ["v2_moe", "v3_moe_top1"])
def test_the_balance_loss_opens_the_original_training_trace(
    name: str, golden: Callable[[str], Golden]
) -> None:
    trace = next(t for t in numbers("minimind/dpo_trace") if t["dialect"] == name)
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    ids = torch.tensor(trace["input_ids"][0])[:, :-1]
    logits = loaded.model.base_model(input_ids=ids, output_router_logits=True).router_logits
    loss = balance_loss(loaded.dialect, loaded.model.config)
    assert loss is not None
    batch: Any = SimpleNamespace(plan=None, attention_mask=torch.ones_like(ids))
    first = trace["steps"][0]
    value = loss(logits, batch).item()
    assert ORIGINAL[name] * value == pytest.approx(first["aux_loss"], rel=1e-5)
    # The original's total says whether its script added it.
    added = default_aux_coef(loaded.dialect, loaded.model.config) * value
    assert first["dpo_loss"] + added == pytest.approx(first["total_loss"], abs=1e-7)


def test_rules_by_hand_on_two_tokens() -> None:
    # Two experts, logits log(3) apart: probabilities (3/4, 1/4) and (1/4, 3/4).
    log3 = 1.0986122886681098
    logits = torch.tensor([[log3, 0.0], [0.0, log3]])
    # Balanced over the batch: f = (1/2, 1/2), mean p = (1/2, 1/2), 2 * (1/4 + 1/4) = 1.
    assert router_aux_loss([logits], everything(1, 2), rule="per_batch", top_k=1) == 1.0
    # One token a sequence: f = (1, 0), p = (3/4, 1/4), 2 * 3/4 = 1.5 in both.
    alone = router_aux_loss([logits], everything(2, 1), rule="per_sequence", top_k=1)
    assert alone.item() == pytest.approx(1.5)
    # Both layers put all on expert 0: each 2 * 1 * 3/4; summed, or as one set.
    one = logits[:1]
    assert router_aux_loss(
        [one, one], everything(1, 1), rule="per_batch", top_k=1
    ).item() == pytest.approx(3.0)
    assert router_aux_loss(
        [one, one], everything(1, 1), rule="switch", top_k=1
    ).item() == pytest.approx(1.5)
    # With both experts chosen v3 counts both: 2 * (3/4 + 1/4) = 2; v2 divides by k.
    assert router_aux_loss([one], everything(1, 1), rule="per_batch", top_k=2) == 2.0
    assert router_aux_loss([one], everything(1, 1), rule="per_sequence", top_k=2) == 1.0


@pytest.mark.parametrize("rule", ["per_sequence", "per_batch", "switch"])
def test_padding_does_not_count(rule: str) -> None:
    torch.manual_seed(0)
    tokens = [torch.randn(3, 4), torch.randn(5, 4)]
    packed = TokenLayout.planned(torch.arange(8), torch.tensor([0, 3, 8]))
    expected = router_aux_loss([torch.cat(tokens)], packed, rule=rule, top_k=2)
    rectangle = torch.full((2, 6, 4), 9.0)
    rectangle[0, :3], rectangle[1, 1:] = tokens[0], tokens[1]
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]])
    got = router_aux_loss([rectangle.view(12, 4)], TokenLayout.rectangle(mask), rule=rule, top_k=2)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    with_empty_row = TokenLayout.planned(torch.arange(8), torch.tensor([0, 3, 8, 8]))
    got = router_aux_loss([torch.cat(tokens)], with_empty_row, rule=rule, top_k=2)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["v2_moe", "v3_moe_top1"])
def test_all_layouts_give_the_same_balance_loss(name: str, golden: Callable[[str], Golden]) -> None:
    g = golden(name)
    loaded = load_model(g.path, config=g.config, tokenizer=False)
    loss = balance_loss(loaded.dialect, loaded.model.config)
    assert loss is not None
    prompt, chosen, rejected = g.input_ids[0, :6], g.input_ids[0, 6:14], g.input_ids[0, 14:19]
    both = [torch.cat([prompt, side]) for side in (chosen, rejected)]
    model = loaded.model.base_model

    mask = torch.tensor([[1] * 14, [1] * 11 + [0] * 3])
    padded = torch.nn.utils.rnn.pad_sequence(both, batch_first=True)
    logits = model(input_ids=padded, attention_mask=mask, output_router_logits=True).router_logits
    batch: Any = SimpleNamespace(plan=None, attention_mask=mask)
    expected = loss(logits, batch)

    use_planned_attention(loaded.model, True)
    for ids, positions, plan in (
        (torch.cat(both), [*range(14), *range(11)], plan_of((14, 11), (0, 0))),
        (
            torch.cat([prompt, chosen, rejected]),
            [*range(14), *range(6, 11)],
            plan_of((14, 5), (0, 6)),
        ),
    ):
        out = model(
            input_ids=ids[None],
            position_ids=torch.tensor([positions]),
            plan=plan,
            output_router_logits=True,
            use_cache=False,
        )
        batch = SimpleNamespace(plan=plan, attention_mask=None)
        assert loss(out.router_logits, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_router_weights_get_a_gradient_with_and_without_checkpointing(
    golden: Callable[[str], Golden],
) -> None:
    g = golden("v3_moe_top1")
    model = load_model(g.path, config=g.config, tokenizer=False).model.train()
    router = model.model.layers[0].mlp.gate.weight

    def gradient() -> torch.Tensor:
        model.zero_grad()
        out = model.base_model(input_ids=g.input_ids, output_router_logits=True, use_cache=False)
        rule = everything(*g.input_ids.shape)
        router_aux_loss(out.router_logits, rule, rule="per_batch", top_k=1).backward()
        return router.grad.clone()

    plain = gradient()
    assert plain.abs().max() > 0
    model.activation_checkpointing_enable()
    assert torch.allclose(gradient(), plain, atol=1e-7)


def test_coefficients_are_those_of_the_original_scripts(
    golden: Callable[[str], Golden],
) -> None:
    expected = {
        "v1_moe": 0.0,
        "v2a_moe": 0.0,
        "v2_moe": 0.0,
        "v3_moe_top1": 5e-4,
        "v3": 0.0,
    }
    for name, coefficient in expected.items():
        g = golden(name)
        loaded = load_model(g.path, config=g.config, tokenizer=False)
        assert default_aux_coef(loaded.dialect, loaded.model.config) == coefficient, name


def test_a_dense_model_has_no_balance_loss(golden: Callable[[str], Golden]) -> None:
    for name in ("v2", "hf_llama"):
        loaded = load_model(golden(name).path, config=golden(name).config, tokenizer=False)
        assert balance_loss(loaded.dialect, loaded.model.config) is None
    hub = load_model(golden("hf_qwen3_moe").path, tokenizer=False)
    assert balance_loss(hub.dialect, hub.model.config) is not None
    assert default_aux_coef(hub.dialect, hub.model.config) == 0.0
    hub.model.config.output_router_logits = True
    assert default_aux_coef(hub.dialect, hub.model.config) == 0.001


def test_what_cannot_be_computed_is_said() -> None:
    with pytest.raises(ValueError, match="unknown balance rule"):
        router_aux_loss([torch.zeros(1, 2)], everything(1, 1), rule="none", top_k=1)
    with pytest.raises(ValueError, match=r"Set loss.aux_coef=0"):
        router_aux_loss([], everything(1, 1), rule="switch", top_k=1)
