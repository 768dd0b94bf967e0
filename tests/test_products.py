"""Products by oneDNN are `F.linear`'s to float32's rounding, and nothing but speed changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minimind_dpo.kernels import cpu_matmul as products
from minimind_dpo.kernels.cpu_matmul import ChosenLinear, use_chosen_library

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def _small_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)
    monkeypatch.setattr(products, "SMALLEST_LAYER", 1)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 5, 7), (2, 3, 7)])
def test_output_and_gradients_are_those_of_f_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(11, 7, requires_grad=True)
    inputs = [x, weight, *([torch.randn(11, requires_grad=True)] if bias else [])]
    expected = F.linear(*inputs)
    upstream = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)

    products.choose_library("onednn")
    got = products.linear(*inputs)
    assert "minimind_dpo" in type(got.grad_fn).__name__
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        torch.autograd.grad(got, inputs, upstream), expected_gradients, strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_strided_weights_are_multiplied_as_they_read() -> None:
    products.choose_library("onednn")
    torch.manual_seed(0)
    x, wide = torch.randn(6, 4), torch.randn(5, 3, 4)
    for weight in (wide[:, 1], wide[:, 1].contiguous(), torch.randn(4, 5).t()):
        torch.testing.assert_close(
            products.product(x, weight), x @ weight.t(), rtol=1e-5, atol=1e-5
        )


@needs_onednn
def test_layers_keep_their_parameters_and_saved_names() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3, bias=False))
    before, parameters = dict(model.state_dict()), list(model.parameters())
    x = torch.randn(4, 8)
    expected = model(x)
    products.choose_library("onednn")
    assert use_chosen_library(model) == 2
    assert [type(m) for m in model] == [ChosenLinear, nn.ReLU, ChosenLinear]
    assert model.state_dict().keys() == before.keys()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(model(x), expected)


def test_torch_s_own_library_leaves_a_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    assert use_chosen_library(model) == 0
    assert type(model[0]) is nn.Linear


@needs_onednn
def test_float64_and_autocast_stay_with_torch() -> None:
    products.choose_library("onednn")
    x, weight = torch.randn(4, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(products.linear(x, weight), F.linear(x, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x.float(), weight.float()).dtype == torch.bfloat16


def test_auto_goes_by_the_processor_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for processor, expected in (("AuthenticAMD", "onednn"), ("GenuineIntel", "torch")):
        monkeypatch.setattr(products, "_processor", lambda name=processor: f"vendor_id: {name}")
        assert products.choose_library("auto") == products.chosen_library() == expected


def test_a_library_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mkl"):
        products.choose_library("mkl")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no oneDNN"):
        products.choose_library("onednn")
    assert products.choose_library("auto") == "torch"
