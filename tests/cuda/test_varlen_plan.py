"""A plan means the same to CUDA's variable-length kernel as by its definition.

The kernel is replaced by its contract (the docstring of `varlen_attn` and the conditions of its C++
code), so that the path runs on a CPU in float64: values and gradients against one softmax a token
and head. The kernel's keywords are those of torch 2.11, 2.12 and later.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen as varlen
from torch import Tensor
from varlen_contract import by_contract

from minimind_dpo.batch import AttentionPlan, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention import cuda_varlen

POSITIONAL = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
KEYWORDS = {
    "2.11": ("return_aux", "scale", "window_size"),
    "2.12": ("return_aux", "scale", "window_size", "enable_gqa"),
}


def by_definition(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, window: int | None
) -> Tensor:
    """One softmax a token and head, over the keys that the plan lists."""
    group = q.shape[1] // k.shape[1]
    rows, token, first = [], 0, 0
    index = plan.key_index.tolist()
    for own, borrowed in zip(plan.query_lengths, plan.borrowed, strict=True):
        for i in range(own):
            seen = index[first : first + borrowed + i + 1]
            seen = seen if window is None else seen[-window:]
            heads = []
            for head in range(q.shape[1]):
                scores = k[seen, head // group] @ q[token + i, head] * q.shape[-1] ** -0.5
                heads.append(scores.softmax(0) @ v[seen, head // group])
            rows.append(torch.stack(heads))
        token, first = token + own, first + own + borrowed
    return torch.stack(rows)


def plan_of(seed: int, layout: str) -> AttentionPlan:
    random = np.random.default_rng(seed)
    pairs = [
        TokenizedPair(*(random.integers(0, 50, n).astype(np.int32) for n in lengths), index)
        for index, lengths in enumerate(random.integers(1, 20, (4, 3)))
    ]
    plan = Collator(layout, max_length=64)(pairs).plan
    assert plan is not None
    return plan


@pytest.mark.parametrize("layout", ["prefix_shared", "packed"])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 1000])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
def test_values_and_gradients_are_those_of_the_plan_s_definition(
    layout: str, window: int | None, heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", by_contract)
    torch.manual_seed(0)
    for seed in range(3):
        plan = plan_of(seed, layout)
        tokens = sum(plan.query_lengths)
        q, k, v = (
            torch.randn(tokens, n, 8, dtype=torch.float64, requires_grad=True)
            for n in (heads[0], heads[1], heads[1])
        )
        upstream = torch.randn(tokens, heads[0], 8, dtype=torch.float64)
        expected = by_definition(q, k, v, plan, window)
        gradients = torch.autograd.grad((expected * upstream).sum(), (q, k, v))
        as_transformers = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, heads, T, head_dim)
        actual = cuda_varlen.varlen_attention(*as_transformers, plan, None, window)[0]
        torch.testing.assert_close(actual, expected)
        ours = torch.autograd.grad((actual * upstream).sum(), (q, k, v))
        torch.testing.assert_close(ours, gradients)


@pytest.mark.parametrize("version", KEYWORDS)
def test_only_keywords_that_the_version_of_torch_has_are_passed(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*args: Any, **keywords: Any) -> Tensor:
        assert set(keywords) <= set(KEYWORDS[version])
        return by_contract(*args, **keywords)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    monkeypatch.setattr(cuda_varlen, "NAMES_GROUPS", "enable_gqa" in KEYWORDS[version])
    plan = plan_of(0, "prefix_shared")
    tokens = sum(plan.query_lengths)
    q, k = torch.randn(1, 4, tokens, 8), torch.randn(1, 2, tokens, 8)
    assert cuda_varlen.varlen_attention(q, k, k, plan, None, None).shape == (1, tokens, 4, 8)


def test_this_torch_has_the_keywords_that_are_passed() -> None:
    parameters = inspect.signature(varlen.varlen_attn).parameters
    assert {*POSITIONAL, "scale", "window_size"} <= set(parameters)


@pytest.mark.parametrize(
    ("dtype", "width", "value_width", "capped", "dropped", "card", "why"),
    [
        (torch.float32, 64, 64, False, False, (9, 0, True), "float32 is not half precision"),
        (torch.float16, 64, 64, False, False, (7, 5, True), "capability 7.5 is below 8.0"),
        (torch.float16, 64, 64, False, False, (8, 6, False), "no flash attention"),
        (torch.float16, 36, 36, False, False, (8, 6, True), "head size 36 is no multiple of 8"),
        (torch.float16, 264, 264, False, False, (8, 6, True), "up to 256"),
        (torch.bfloat16, 192, 128, False, False, (9, 0, True), "128 wide, queries 192"),
        (torch.bfloat16, 64, 64, True, False, (9, 0, True), "capped"),
        (torch.bfloat16, 64, 64, False, True, (9, 0, True), "dropped"),
    ],
)
def test_what_keeps_tensors_from_the_kernel_is_named(
    dtype: torch.dtype,
    width: int,
    value_width: int,
    capped: bool,
    dropped: bool,
    card: tuple[int, int, bool],
    why: str,
) -> None:
    obstacle = cuda_varlen._obstacle(dtype, width, value_width, capped, dropped, card)
    assert obstacle is not None
    assert why in obstacle
    assert cuda_varlen._obstacle(torch.float16, 64, 64, False, False, (8, 0, True)) is None


def test_the_way_that_was_chosen_and_why_is_one_line_of_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="minimind_dpo")
    cuda_varlen._tell_once.cache_clear()
    query = torch.zeros(1, 4, 3, 64, dtype=torch.float16)
    for capability in ((9, 0), (7, 5)):
        monkeypatch.setattr(cuda_varlen, "_card", lambda card=capability: (*card, True))
        for _ in range(3):  # layers
            taken = cuda_varlen.takes_varlen(query, query, None, 0.0)
        assert taken == (capability == (9, 0))
    assert [record.getMessage() for record in caplog.records] == [
        "Attention: one variable-length kernel a layer",
        "Attention: one call a sequence, since the card's compute capability 7.5 is below 8.0",
    ]
    cuda_varlen._tell_once.cache_clear()
