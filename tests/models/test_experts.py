"""Experts of a mixture: float32 as transformers computes it, half precision under autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_support import Golden
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from minimind_dpo.models.experts import AUTOCAST_EXPERTS, use_autocast_experts
from minimind_dpo.models.load import load_model
from minimind_dpo.models.minimind.configuration import transformers_config
from minimind_dpo.models.minimind.generations import GENERATIONS

MIXTURES = ["v1", "v2", "v3"]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "moe_intermediate_size": 48,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}


def mixture(generation: str, **sizes: int) -> tuple[PreTrainedModel, Tensor]:
    """A small random mixture of a generation, and tokens."""
    table = GENERATIONS[generation]
    torch.manual_seed(0)
    config = transformers_config(table, True, dict(table.defaults) | SIZES | sizes, 0.0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    use_autocast_experts(model)
    return model, torch.randint(0, 40, (3, 17))


def gradients(model: PreTrainedModel, ids: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = model(input_ids=ids).logits
    logits.float().log_softmax(-1)[..., 0].mean().backward()
    return [logits.detach().float(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("generation", MIXTURES)
def test_without_autocast_numbers_are_those_of_transformers_bit_for_bit(generation: str) -> None:
    model, ids = mixture(generation)
    ours = gradients(model, ids, None)
    model.set_experts_implementation("grouped_mm")
    assert all(map(torch.equal, ours, gradients(model, ids, None)))


class Products(TorchDispatchMode):
    """Precisions of the grouped products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if "grouped_mm" in str(func):
            self.dtypes |= {arg.dtype for arg in args[:2]}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("generation", MIXTURES)
def test_under_autocast_products_are_in_its_precision_and_near_float32(
    generation: str, dtype: torch.dtype
) -> None:
    model, ids = mixture(generation)
    exact = gradients(model, ids, None)
    with Products() as products:
        half = gradients(model, ids, dtype)
    assert products.dtypes == {dtype}
    for ours, theirs in zip(half, exact, strict=True):
        error = (ours - theirs).norm() / theirs.norm()
        assert error < (0.05 if dtype is torch.bfloat16 else 0.01)


def test_widths_that_half_precision_has_no_product_for_stay_in_float32() -> None:
    model, ids = mixture("v3", moe_intermediate_size=44)
    with Products() as products:
        gradients(model, ids, torch.bfloat16)
    assert products.dtypes == {torch.float32}


def test_a_loaded_mixture_follows_autocast_and_its_export_says_nothing_of_it(
    golden: Callable[[str], Golden],
) -> None:
    g = golden("v3_moe_top1")
    config = load_model(g.path, config=g.config, tokenizer=False).model.config
    assert config._experts_implementation == AUTOCAST_EXPERTS
    assert AUTOCAST_EXPERTS not in config.to_json_string()
