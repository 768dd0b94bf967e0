"""A plan means the same to CUDA's variable-length kernel as by its definition.

The kernel is replaced by its contract (the docstring of `varlen_attn` and the conditions of its C++
code), so that the path runs on a CPU in float64: values and gradients against one softmax a token
and head. The kernel's keywords are those of torch 2.11, 2.12 and later.
"""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen as varlen
from torch import Tensor

from minimind_dpo.batch import AttentionPlan, TokenizedPair
from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention import cuda_varlen

POSITIONAL = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
KEYWORDS = {
    "2.11": ("return_aux", "scale", "window_size"),
    "2.12": ("return_aux", "scale", "window_size", "enable_gqa"),
}


def by_contract(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_offsets: Tensor,
    k_offsets: Tensor,
    max_q: int,
    max_k: int,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool | None = None,
) -> Tensor:
    """Query i of L_q sees key j of L_k where -left <= j - (i + L_k - L_q) <= right; -1 is open."""
    assert q_offsets.dtype == k_offsets.dtype == torch.int32
    assert enable_gqa is not False or q.shape[1] == k.shape[1]
    spans_q, spans_k = (list(itertools.pairwise(x.tolist())) for x in (q_offsets, k_offsets))
    assert spans_q[-1][1] == len(q)
    assert spans_k[-1][1] == len(k) == len(v)
    assert max_q >= max(end - start for start, end in spans_q)
    assert max_k >= max(end - start for start, end in spans_k)
    group = q.shape[1] // k.shape[1]
    left, right = window_size
    rows = []
    for (q_start, q_end), (k_start, k_end) in zip(spans_q, spans_k, strict=True):
        keys, values = (x[k_start:k_end].repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[q_start:q_end], keys)
        scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
        last = torch.arange(k_end - k_start - (q_end - q_start), k_end - k_start)[:, None]
        distance = torch.arange(k_end - k_start)[None, :] - last
        hidden = torch.zeros_like(distance, dtype=torch.bool)
        hidden |= (distance < -left) if left >= 0 else hidden
        hidden |= (distance > right) if right >= 0 else hidden
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        rows.append(torch.einsum("hij,jhd->ihd", weights, values))
    return torch.cat(rows)


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
    cuda_varlen._keywords.cache_clear()
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
    cuda_varlen._keywords.cache_clear()


@pytest.mark.parametrize("version", KEYWORDS)
def test_only_keywords_that_the_version_of_torch_has_are_passed(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kernel(*args: Any, **keywords: Any) -> Tensor:
        assert set(keywords) <= set(KEYWORDS[version])
        return by_contract(*args, **keywords)

    names = (*POSITIONAL, *KEYWORDS[version])
    kinds = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names]
    kernel.__signature__ = inspect.Signature(kinds)  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    cuda_varlen._keywords.cache_clear()
    plan = plan_of(0, "prefix_shared")
    tokens = sum(plan.query_lengths)
    q, k = torch.randn(1, 4, tokens, 8), torch.randn(1, 2, tokens, 8)
    assert cuda_varlen.varlen_attention(q, k, k, plan, None, None).shape == (1, tokens, 4, 8)
    cuda_varlen._keywords.cache_clear()


def test_this_torch_has_the_keywords_that_are_passed() -> None:
    parameters = inspect.signature(varlen.varlen_attn).parameters
    assert {*POSITIONAL, "scale", "window_size"} <= set(parameters)


@pytest.mark.parametrize(
    ("shape", "value_width", "dtype", "softcap", "dropout", "why"),
    [
        ((1, 4, 9, 32), 32, torch.float32, None, 0.0, "not half precision"),
        ((1, 4, 9, 36), 36, torch.float16, None, 0.0, "no multiple of 8"),
        ((1, 4, 9, 264), 264, torch.float16, None, 0.0, "up to 256"),
        ((1, 4, 9, 192), 128, torch.bfloat16, None, 0.0, "128 wide, queries 192"),
        ((1, 4, 9, 32), 32, torch.bfloat16, 50.0, 0.0, "capped"),
        ((1, 4, 9, 32), 32, torch.bfloat16, None, 0.1, "dropped"),
    ],
)
def test_what_the_kernel_cannot_do_is_named(
    shape: tuple[int, ...],
    value_width: int,
    dtype: torch.dtype,
    softcap: float | None,
    dropout: float,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    query = torch.zeros(shape, dtype=dtype)
    value = torch.zeros(*shape[:3], value_width, dtype=dtype)
    assert why in (cuda_varlen.why_not_varlen(query, value, softcap, dropout) or "")
    assert (
        cuda_varlen.why_not_varlen(*(torch.zeros(1, 4, 9, 64, dtype=torch.float16),) * 2, None, 0.0)
        is None
    )
