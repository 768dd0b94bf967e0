"""Blocks of queries give what each sequence gives under its own mask, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_dpo.batch import AttentionPlan
from minimind_dpo.kernels.cpu_matmul import choose_library
from minimind_dpo.models.attention import cpu_blocks as blocks


def make_plan(query_lengths: tuple[int, ...], borrowed: tuple[int, ...]) -> AttentionPlan:
    """Keys by the definition of `AttentionPlan`: the first of the sequence before, then its own."""
    keys: list[list[int]] = []
    start = 0
    for own, lent in zip(query_lengths, borrowed, strict=True):
        keys.append((keys[-1][:lent] if lent else []) + list(range(start, start + own)))
        start += own

    def offsets(lengths: list[int]) -> Tensor:
        return torch.tensor([0, *lengths]).cumsum(0).int()

    return AttentionPlan(
        query_lengths,
        borrowed,
        torch.tensor([key for row in keys for key in row]),
        offsets(list(query_lengths)),
        offsets([len(row) for row in keys]),
    )


def under_masks(
    q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, window: int | None
) -> Tensor:
    """The plain way: one (T, T) mask over everything."""
    tokens = len(q)
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    start, first = 0, 0
    for queries, keys in zip(plan.query_lengths, plan.key_lengths, strict=True):
        index = plan.key_index[first : first + keys]
        for row in range(queries):
            last = keys - queries + row + 1
            seen[start + row, index[max(0, last - (window or last)) : last]] = True
        start, first = start + queries, first + keys
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1)


def compare(
    plan: AttentionPlan, heads: int, kv_heads: int, dtype: torch.dtype, window: int | None
) -> list[Tensor]:
    """Largest differences of output and gradients, relative to the largest value."""
    torch.manual_seed(0)
    tokens = sum(plan.query_lengths)
    shapes = [(tokens, heads, 8), (tokens, kv_heads, 8), (tokens, kv_heads, 6)]
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    weights = torch.randn(tokens, heads, 6, dtype=dtype)
    both = []
    for attend in (blocks.block_attention, under_masks):
        out = attend(*inputs, plan, 0.3, window)
        both.append([out, *torch.autograd.grad(out, inputs, weights)])
    return [(a - b).abs().max() / b.abs().max() for a, b in zip(*both, strict=True)]


@pytest.mark.parametrize("window", [None, 3, 17])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_blocks_equal_one_mask_over_everything(
    heads: int, kv_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four to sixteen queries a block; a sequence of one token, and one that borrows what was lent.
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    plan = make_plan((41, 19, 1, 23, 7), (0, 12, 12, 0, 20))
    for error in compare(plan, heads, kv_heads, torch.float64, window):
        assert error < 1e-12


@pytest.mark.parametrize("library", ["onednn", "torch"])
def test_both_libraries_give_the_same_attention(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr("minimind_dpo.kernels.cpu_matmul.SMALLEST", 1)
    choose_library(library)
    plan = make_plan((300, 150), (0, 200))
    for error in compare(plan, 4, 2, torch.float32, None):
        assert error < 1e-5


def test_half_precision_is_computed_in_float32() -> None:
    plan = make_plan((90, 30), (0, 50))
    torch.manual_seed(0)
    q, k, v = (torch.randn(120, 2, 8).bfloat16() for _ in range(3))
    exact = blocks.block_attention(q.float(), k.float(), v.float(), plan)
    with torch.autocast("cpu", torch.bfloat16):
        half = blocks.block_attention(q, k, v, plan)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, exact.bfloat16())


def test_neither_pass_is_rounded_under_autocast() -> None:
    plan = make_plan((90, 30), (0, 50))
    results = []
    for rounding in (False, True):
        torch.manual_seed(0)
        q, k, v = (torch.randn(120, 2, 8, requires_grad=True) for _ in range(3))
        with torch.autocast("cpu", torch.bfloat16, enabled=rounding):
            out = blocks.block_attention(q, k, v, plan)
            results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for exact, got in zip(*results, strict=True):
        assert torch.equal(exact, got)
