"""What must hold for any log-probs at all, as property tests."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.metrics import MetricSums, pair_metrics
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import LossOutput, pair_losses

# A function of the gap: ln 2 at policy = reference and the same after adding a constant to both.
LOGISTIC = ("sigmoid", "aot", "aot_unpaired")
GAP = (*LOGISTIC, "hinge", "exo_pair", "robust", "discopop")
PAIRWISE = tuple(name for name, loss in LOSSES.items() if not loss.sorts)

quick = settings(max_examples=25, deadline=None, derandomize=True)
seeds = st.integers(0, 2**31)
counts = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def options_of(name: str) -> LossOptions:
    return LossOptions(type=(name,), label_smoothing=0.1 if name == "exo_pair" else 0.0)


def pairs(count: int, seed: int, reference_of: PairLogps | None = None) -> PairLogps:
    """Random token log-probs of `count` pairs of 1 to 6 tokens a side."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (2 * count,), generator=generator)
    if reference_of is not None:
        lengths = reference_of.lengths
    values = -3 * torch.rand(int(lengths.sum()), generator=generator, dtype=torch.float64) - 0.01
    ids = torch.arange(2 * count).repeat_interleave(lengths)
    return PairLogps(values.requires_grad_(), ids, lengths, log_sum_sq_probs=values.detach() - 0.1)


def part(logps: PairLogps, first: int, last: int) -> PairLogps:
    """Pairs first..last-1, by themselves."""
    count, size = logps.num_pairs, last - first
    sequences = [*range(first, last), *range(count + first, count + last)]
    rows = [logps.token_logps[logps.sequence_id == index] for index in sequences]
    lengths = logps.lengths[sequences]
    ids = torch.arange(2 * size).repeat_interleave(lengths)
    return PairLogps(torch.cat(rows), ids, lengths, log_sum_sq_probs=torch.cat(rows).detach() - 0.1)


def swapped(logps: PairLogps) -> PairLogps:
    count = logps.num_pairs
    ids = (logps.sequence_id + count) % (2 * count)
    return PairLogps(logps.token_logps, ids, logps.lengths.roll(count))


@pytest.mark.parametrize("name", LOGISTIC)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@quick
@given(seed=seeds, count=st.integers(1, 5))
def test_loss_is_ln_2_and_accuracy_half_when_policy_is_reference(name, dtype, seed, count):
    policy = pairs(count, seed)
    policy = PairLogps(policy.token_logps.detach().to(dtype), policy.sequence_id, policy.lengths)
    output = pair_losses(policy, policy, options_of(name))
    assert output.losses.tolist() == pytest.approx([math.log(2)] * count, abs=1e-7)
    sums = MetricSums()
    sums.add(pair_metrics(policy, policy, output))
    means = sums.means()
    assert (means["rewards/accuracies"], means["rewards/ties"]) == (0.5, 1.0)
    assert means["rewards/margins"] == means["logratios/chosen"] == 0.0


@quick
@given(seed=seeds, count=st.integers(1, 5))
def test_swapping_chosen_and_rejected_mirrors(seed, count):
    """-log s(-h) = -log s(h) + h, rewards change places, accuracy becomes 1 - accuracy."""
    policy = pairs(count, seed)
    reference = pairs(count, seed + 1, policy)
    straight = pair_losses(policy, reference, LossOptions())
    mirrored = pair_losses(swapped(policy), swapped(reference), LossOptions())
    gap = straight.chosen_rewards - straight.rejected_rewards
    torch.testing.assert_close(mirrored.losses, straight.losses + gap, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mirrored.chosen_rewards, straight.rejected_rewards)
    a, b = (
        pair_metrics(policy, reference, output)["rewards/accuracies"]
        for output in (straight, mirrored)
    )
    assert float(a + b) == count


@pytest.mark.parametrize("name", GAP)
@quick
@given(seed=seeds, constant=st.floats(-5, 5))
def test_a_constant_on_both_sides_changes_nothing(name, seed, constant):
    """A term that chosen and rejected share, such as log Z of the prompt, cancels in the gap."""
    policy = pairs(3, seed)
    reference = pairs(3, seed + 1, policy)
    first = torch.ones(policy.token_logps.shape, dtype=torch.bool)
    first[1:] = policy.sequence_id[1:] != policy.sequence_id[:-1]
    moved = policy.token_logps + constant * first
    shifted = PairLogps(moved, policy.sequence_id, policy.lengths)
    before = pair_losses(policy, reference, options_of(name)).losses
    after = pair_losses(shifted, reference, options_of(name)).losses
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-11)


def total_and_gradient(outputs: list[LossOutput], leaf: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.cat([output.losses for output in outputs]).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


@pytest.mark.parametrize("name", PAIRWISE)
@quick
@given(seed=seeds, sizes=counts, wpo=st.booleans())
def test_micro_batches_add_up_to_the_batch(name, seed, sizes, wpo):
    """Loss and gradient of uneven parts, in float64, and each pair's own loss."""
    options = LossOptions(
        type=(name,) if name == "sft" else (name, "sft"),
        label_smoothing=0.1 if name == "exo_pair" else 0.0,
        wpo=wpo and name != "sft",
    )
    policy = pairs(sum(sizes), seed)
    reference = pairs(sum(sizes), seed + 1, policy)
    mean_length = float(policy.lengths[: sum(sizes)].double().mean())
    whole = pair_losses(policy, reference, options)
    parts, start = [], 0
    for size in sizes:
        inputs = (part(logps, start, start + size) for logps in (policy, reference))
        parts.append(pair_losses(*inputs, options, mean_chosen_length=mean_length))
        start += size
    torch.testing.assert_close(
        torch.cat([output.losses for output in parts]), whole.losses, rtol=1e-12, atol=1e-12
    )
    ours, theirs = (total_and_gradient(outputs, policy.token_logps) for outputs in (parts, [whole]))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@quick
@given(seed=seeds, sizes=counts)
def test_metrics_of_micro_batches_are_those_of_the_batch(seed, sizes):
    policy = pairs(sum(sizes), seed)
    reference = pairs(sum(sizes), seed + 1, policy)
    whole, parts, start = MetricSums(), MetricSums(), 0
    whole.add(pair_metrics(policy, reference, pair_losses(policy, reference, LossOptions())))
    for size in sizes:
        inputs = [part(logps, start, start + size) for logps in (policy, reference)]
        parts.add(pair_metrics(*inputs, pair_losses(*inputs, LossOptions())))
        start += size
    assert parts.pairs == whole.pairs == sum(sizes)
    assert parts.means() == pytest.approx(whole.means(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "discopop"])
def test_huge_log_ratios_give_finite_losses_and_gradients(name):
    """1,000 nats either way in float32. DiscoPOP has an exponential in its definition."""
    values = torch.tensor([-1.0, -1000.0, -1000.0, -1.0], requires_grad=True)
    reference = PairLogps(values.detach().flip(0), torch.arange(4), torch.ones(4).long())
    policy = PairLogps(values, torch.arange(4), torch.ones(4).long())
    options = LossOptions(
        type=(name,), beta=1.0, label_smoothing=0.1 if name == "exo_pair" else 0.0
    )
    losses = pair_losses(policy, reference, options).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert values.grad is not None
    assert values.grad.isfinite().all()
