"""The head by vocabulary blocks is the head, whole: log-probs, statistics and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from minimind_dpo.kernels.cpu_matmul import choose_library
from minimind_dpo.objective import lm_head as heads
from minimind_dpo.objective.lm_head import Head, scored_logps

TOKENS, WIDTH, VOCABULARY = 23, 16, 261


def make(
    bias: bool, scale: float, softcap: float, dtype: torch.dtype
) -> tuple[Tensor, Head, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    added = torch.randn(VOCABULARY, dtype=dtype, requires_grad=True) if bias else None
    return states, Head(weight, added, scale, softcap), torch.randint(VOCABULARY, (TOKENS,))


def plain(states: Tensor, head: Head, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    z = head.scale * torch.nn.functional.linear(states, head.weight, head.bias)
    if head.softcap:
        z = head.softcap * torch.tanh(z / head.softcap)
    logps = z.log_softmax(-1)
    entropy = -(logps.exp() * logps).sum(-1)
    return logps.gather(1, target[:, None]).squeeze(1), entropy, (2 * logps).logsumexp(-1)


def gradients(logps: Tensor, states: Tensor, head: Head) -> list[Tensor]:
    inputs = [x for x in (states, head.weight, head.bias) if x is not None]
    weights = torch.linspace(-1, 1, len(logps), dtype=logps.dtype)
    return list(torch.autograd.grad((logps * weights).sum(), inputs))


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("size", [64, 100, 261, 1024])
@pytest.mark.parametrize(
    ("bias", "scale", "softcap"),
    [(False, 1.0, 0.0), (True, 1.0, 0.0), (False, 0.3, 0.0), (True, 2.0, 3.0)],
)
def test_vocabulary_blocks_are_the_whole_head(
    bias: bool,
    scale: float,
    softcap: float,
    size: int,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "BLOCK_SIZE", {"cpu": size})
    monkeypatch.setattr(heads, "KEPT_ELEMENTS", TOKENS * VOCABULARY if kept else 0)
    states, head, target = make(bias, scale, softcap, torch.float64)
    expected, got = plain(states, head, target), scored_logps(states, head, target, True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
    both = gradients(got[0], states, head), gradients(expected[0], states, head)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_the_vocabulary_is_covered_once() -> None:
    for vocabulary in (61, 1024, 1025, 6400, 151_936):
        blocks = heads._blocks(vocabulary, "cpu")
        assert [blocks[0].start, *(block.stop for block in blocks)] == [
            *(block.start for block in blocks),
            vocabulary,
        ]
        assert max(block.stop - block.start for block in blocks) <= heads.BLOCK_SIZE["cpu"]


def test_a_batch_is_differentiated_twice_with_the_same_result() -> None:
    states, head, target = make(True, 1.0, 3.0, torch.float32)
    logps, _, _ = scored_logps(states, head, target)
    first, second = (
        torch.autograd.grad(logps.sum(), [states, head.weight], retain_graph=True) for _ in range(2)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_a_frozen_head_gets_no_gradient_and_states_do() -> None:
    states, head, target = make(False, 1.0, 0.0, torch.float32)
    head.weight.requires_grad_(False)
    scored_logps(states, head, target)[0].sum().backward()
    assert states.grad is not None
    assert head.weight.grad is None


def test_bfloat16_products_are_those_of_autocast() -> None:
    states, head, target = make(False, 1.0, 0.0, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = scored_logps(states, head, target)[0]
        z = torch.nn.functional.linear(states, head.weight).float()
    expected = z.log_softmax(-1).gather(1, target[:, None]).squeeze(1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    both = gradients(got, states, head), gradients(expected, states, head)
    for a, b in zip(*both, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


def test_a_word_that_can_never_be_is_no_harm() -> None:
    states, head, target = make(True, 1.0, 0.0, torch.float64)
    assert head.bias is not None
    with torch.no_grad():
        head.bias[[0, 260]] = float("-inf")
    target = target.clamp(1, 259)
    expected, got = plain(states, head, target), scored_logps(states, head, target)
    torch.testing.assert_close(got[0], expected[0])
    both = gradients(got[0], states, head), gradients(expected[0], states, head)
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b)


def test_the_backward_pass_is_not_rounded_by_an_autocast_around_it() -> None:
    states, head, target = make(False, 1.0, 0.0, torch.float32)
    logps = scored_logps(states, head, target)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(logps.sum(), [states, head.weight], retain_graph=True)
    outside = torch.autograd.grad(logps.sum(), [states, head.weight])
    for a, b in zip(inside, outside, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_either_library_of_products_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minimind_dpo.kernels.cpu_matmul.SMALLEST", 0)
    states, head, target = make(True, 1.0, 0.0, torch.float32)
    results = []
    for library in ("torch", "onednn"):
        choose_library(library)
        logps = scored_logps(states, head, target)[0]
        results.append([logps, *gradients(logps, states, head)])
    choose_library("torch")
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
