"""The check at load: windows, leaks as small as rounding, noise of train mode, true advice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from training_support import quiet_trainer, tiny_model

from minimind_dpo.config.compose import compose
from minimind_dpo.models.attention import planned
from minimind_dpo.models.errors import CheckpointError
from minimind_dpo.run.build import check_on_device
from minimind_dpo.training import layout_check
from minimind_dpo.training.layout_check import check_layout

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
PHIMOE = {"num_local_experts": 4, "num_experts_per_tok": 2}

MODELS: dict[str, Callable[[], tf.PreTrainedConfig]] = {
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(
        **SMALL,
        **EXPERTS,
        shared_expert_intermediate_size=16,
        use_sliding_window=True,
        sliding_window=40,
    ),
    "phimoe": lambda: tf.PhimoeConfig(
        **SMALL, **PHIMOE, sliding_window=40, router_jitter_noise=0.0
    ),
    "mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=40),
    "falcon_h1": lambda: tf.FalconH1Config(
        **SMALL, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
    "bloom": lambda: tf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4),
    "gpt_oss": lambda: tf.GptOssConfig(
        **SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=40
    ),
    "llama4": lambda: tf.Llama4TextConfig(
        **SMALL, head_dim=8, intermediate_size_mlp=48, num_local_experts=2
    ),
}


def make(name: str) -> tf.PreTrainedModel:
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(MODELS[name]()).eval()


@pytest.mark.parametrize("layout", ["prefix_shared", "packed"])
@pytest.mark.parametrize("family", ["qwen2_moe", "phimoe"])
def test_a_window_that_lives_in_the_mask_alone_is_refused(family: str, layout: str) -> None:
    model = make(family)
    with pytest.raises(CheckpointError, match=r"in a text longer than sliding_window=40\. Use"):
        check_layout(model, layout)
    check_layout(model, "padded")
    # Texts that cannot be longer than the window are scored right.
    check_layout(model, layout, max_length=40)


@pytest.mark.parametrize("layout", ["prefix_shared", "packed", "padded"])
def test_a_window_that_the_attention_gets_is_accepted(layout: str) -> None:
    check_layout(make("mistral"), layout)


@torch.no_grad()
def test_the_text_goes_beyond_every_length_that_is_named() -> None:
    model = make("mistral")
    model.config.rope_parameters["original_max_position_embeddings"] = 90
    model.config.max_window_layers = 200  # a number of layers
    (text,) = layout_check._long_text(model, 1024)
    # 16 tokens more than the longest of 40 and 90.
    assert (text.beyond, len(text.pairs[0].prompt_ids) + 5) == (
        "original_max_position_embeddings=90",
        106,
    )
    (text,) = layout_check._long_text(model, 95)
    assert len(text.pairs[0].prompt_ids) + 5 == 95
    assert layout_check._long_text(model, 40) == []


def test_a_leak_of_a_hundredth_of_a_percent_is_seen() -> None:
    # Mamba's state runs on from one sequence into the next: 1e-4 nats where rounding is 5e-7.
    with pytest.raises(CheckpointError, match=r"by up to 0\.000\d+ nats a token, where rounding"):
        check_layout(make("falcon_h1"), "packed")


@torch.no_grad()
def test_the_tolerance_follows_the_model_s_own_rounding() -> None:
    soft, sharp = tiny_model(), tiny_model()
    sharp.lm_head.weight *= 100
    small, large = (layout_check._text(m, layout_check._SHAPES).tolerance for m in (soft, sharp))
    assert 1e-6 < small < 1e-4
    assert large > 10 * small
    for layout in ("prefix_shared", "packed", "padded"):
        check_layout(sharp, layout)


@torch.no_grad()
def test_the_tolerance_follows_the_precision_that_products_have() -> None:
    def tolerance(dtype: torch.dtype | None = None, products: str = "highest") -> float:
        torch.set_float32_matmul_precision(products)
        try:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                return layout_check._text(tiny_model(), layout_check._SHAPES).tolerance
        finally:
            torch.set_float32_matmul_precision("highest")

    exact = tolerance()
    # 23 bits in float32, 10 in TF32, 7 in bfloat16: 8,192 and 8 times the rounding before.
    assert 1e-6 < exact < 1e-4
    assert 500 * exact < tolerance(products="high") < 0.5
    assert 2 * tolerance(products="high") < tolerance(torch.bfloat16) < 2.0


def test_a_kernel_that_is_wrong_in_the_run_s_precision_alone_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = planned._outside_graphs

    def wrong(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        # No query sees more than itself where the products are bfloat16.
        out = right(q, k, v, *rest)
        groups = q.shape[1] // v.shape[1]
        alone = v.repeat_interleave(groups, 1).transpose(1, 2)
        return alone if torch.is_autocast_enabled("cpu") else out

    monkeypatch.setattr(planned, "_outside_graphs", wrong)
    policy: Any = SimpleNamespace(model=tiny_model())
    config = compose(["experiment=demo"])
    for precision, refused in (("32-true", False), ("bf16-mixed", True)):
        trainer = quiet_trainer(precision=precision)
        with pytest.raises(CheckpointError, match="nats") if refused else nullcontext():
            check_on_device(config, policy, trainer)


def test_noise_of_train_mode_is_named_with_the_key_that_ends_it() -> None:
    config = MODELS["phimoe"]()
    config.sliding_window, config.router_jitter_noise = None, 0.01
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    before = torch.get_rng_state()
    with pytest.raises(CheckpointError, match=r"Set model\.config\.router_jitter_noise=0\.0"):
        check_layout(model, "padded")
    assert torch.equal(before, torch.get_rng_state())
    assert not model.training
    config.router_jitter_noise = 0.0
    check_layout(tf.AutoModelForCausalLM.from_config(config), "padded")


def test_dropout_is_noise_unless_it_was_asked_for() -> None:
    model = tiny_model()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    with pytest.raises(CheckpointError, match="scores otherwise in train mode"):
        check_layout(model, "prefix_shared")
    check_layout(model, "prefix_shared", noise=True)


@pytest.mark.parametrize("family", ["bloom", "gpt_oss", "llama4"])
def test_attention_that_cannot_be_planned_is_told_once_with_what_helps(family: str) -> None:
    model = make(family)
    with pytest.raises(CheckpointError, match=r"Use data\.layout=padded") as caught:
        check_layout(model, "prefix_shared")
    assert str(caught.value).count("Use data.layout=padded") == 1
    check_layout(model, "padded")


def test_padded_is_not_advised_where_it_does_not_help(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **kw: type("Out", (), {"logits": forward(**kw).logits * 1.5})
    )
    with pytest.raises(CheckpointError, match=r"Nor with data\.layout=padded") as caught:
        check_layout(model, "packed")
    assert "Use data.layout" not in str(caught.value)
