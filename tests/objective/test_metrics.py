"""Metrics are sums and counts, so that means over pairs are exact."""

from __future__ import annotations

import pytest
import torch

from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.metrics import MetricSums, metric_names, pair_metrics, reward_rounding
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import pair_losses


def logps(values: list[float], entropy: list[float] | None = None) -> PairLogps:
    """One token a sequence."""
    lengths = torch.ones(len(values), dtype=torch.long)
    return PairLogps(
        torch.tensor(values),
        torch.arange(len(values)),
        lengths,
        entropy=None if entropy is None else torch.tensor(entropy),
    )


def test_metrics_of_three_pairs_are_what_one_counts_by_hand():
    """Log-ratios: chosen 1, 0, -1 and rejected -1, 0, 1; one right, one tie, one wrong."""
    policy = logps([-1, -2, -3, -2, -2, -1], entropy=[1, 2, 3, 4, 5, 9])
    reference = logps([-2, -2, -2, -1, -2, -2])
    output = pair_losses(policy, reference, LossOptions(beta=0.5))
    sums = MetricSums()
    sums.add(pair_metrics(policy, reference, output, torch.tensor([1.0, 1.0, 0.0])))
    # sp(-1) and ln 2 count in the loss, the third pair weighs nothing.
    assert sums.means() == pytest.approx(
        {
            "entropy": 4.0,
            "logps/chosen": -2.0,
            "logps/rejected": -5 / 3,
            "logratios/chosen": 0.0,
            "logratios/rejected": 0.0,
            "loss": (0.3132616875 + 0.6931471806) / 3,
            "rewards/accuracies": 0.5,
            "rewards/chosen": 0.0,
            "rewards/margins": 0.0,
            "rewards/rejected": 0.0,
            "rewards/ties": 1 / 3,
        },
        abs=1e-7,
    )
    assert list(sums.means()) == sorted(sums.means())


def test_each_of_several_losses_is_reported_by_itself():
    policy, reference = logps([-1, -2]), logps([-1, -2])
    options = LossOptions(type=("sigmoid", "sft"), weights=(1.0, 0.5), rpo_alpha=0.1)
    metrics = pair_metrics(policy, reference, pair_losses(policy, reference, options))
    assert float(metrics["loss/sigmoid"]) == pytest.approx(0.6931471806)
    assert float(metrics["loss/sft"]) == float(metrics["loss/rpo"]) == 1.0
    assert float(metrics["loss"]) == pytest.approx(0.6931471806 + 0.5 + 0.1)


def test_a_device_without_pairs_still_lines_up():
    """Two devices, one all-reduce: 3 pairs with loss ln 2 and none give a mean of ln 2."""
    policy = logps([-1, -1, -1, -2, -2, -2], entropy=[0.5] * 6)
    options = LossOptions(type=("sigmoid", "hinge"))
    busy, idle = MetricSums(), MetricSums(metric_names(options))
    busy.add(pair_metrics(policy, policy, pair_losses(policy, policy, options)))
    assert busy.names == idle.names
    means = idle.means(lambda flat: flat + busy.flat())
    assert means["loss/sigmoid"] == pytest.approx(0.6931471806)
    assert means["entropy"] == 0.5
    assert idle.pairs == 0
    assert idle.means() == {}


def test_no_pairs_give_the_same_keys_with_zeros():
    full, empty = logps([-1, -1], entropy=[1, 1]), logps([], entropy=[])
    a, b = (pair_metrics(p, p, pair_losses(p, p, LossOptions())) for p in (full, empty))
    assert a.keys() == b.keys()
    assert set(b) == set(metric_names(LossOptions()))
    assert all(float(value) == 0 for value in b.values())


@pytest.mark.parametrize("name", ["simpo", "sft"])
def test_names_are_known_beforehand_without_a_reference(name):
    policy, options = logps([-1, -2]), LossOptions(type=(name,))
    metrics = pair_metrics(policy, None, pair_losses(policy, None, options))
    assert set(metrics) == set(metric_names(options, reference=False, entropy=False))


def test_reset_keeps_names_and_starts_from_zero():
    policy = logps([-1, -2])
    metrics = pair_metrics(policy, policy, pair_losses(policy, policy, LossOptions()))
    sums = MetricSums()
    sums.add(metrics)
    names = sums.names
    sums.reset()
    assert (sums.pairs, sums.means(), sums.names) == (0, {}, names)
    sums.add(metrics)
    assert sums.pairs == 1


def test_batches_with_other_metrics_are_refused():
    policy = logps([-1, -2])
    sums = MetricSums()
    for reference in (policy, None):
        options = LossOptions(type=("sft",))
        metrics = pair_metrics(policy, reference, pair_losses(policy, reference, options))
        if reference is None:
            with pytest.raises(ValueError, match="logratios/chosen"):
                sums.add(metrics)
        else:
            sums.add(metrics)


def test_sums_of_many_small_batches_keep_their_digits():
    """10,000 times 0.1 in float32 would end at 999.9029."""
    sums = MetricSums()
    for _ in range(10_000):
        sums.add({"pairs": torch.tensor(1.0), "loss": torch.tensor(0.1)})
    assert sums.means()["loss"] == pytest.approx(float(torch.tensor(0.1)), rel=1e-12)


def test_a_gap_that_rounding_explains_is_a_tie():
    """300 nats a side: 2 * 4 * 300 + 16 * sqrt(2) units of 2 ** -23, times beta 0.5: 1.4e-4."""
    reference = logps([-300, -300, -300, -300, -300, -300])
    policy = logps([-300 + 2e-4, -300, -300 + 4e-4, -300, -300 + 1e-4, -300])
    output = pair_losses(policy, reference, LossOptions(beta=0.5))
    expected = 0.5 * 2**-23 * (2 * 1200 + 16 * 2**0.5)
    rounding = reward_rounding(policy, reference, output)
    torch.testing.assert_close(rounding, torch.full((3,), expected), rtol=1e-5, atol=0)
    # Gaps of 1.0e-4 and -0.5e-4 are ties, 2.0e-4 is not.
    metrics = pair_metrics(policy, reference, output)
    assert float(metrics["rewards/ties"]) == 2
    assert float(metrics["rewards/accuracies"]) == 2


def test_without_a_reference_rewards_are_told_apart_to_their_last_place():
    policy = logps([-300, -300 - 2**-10, -300, -300])
    options = LossOptions(type=("cpo",), beta=1.0)
    metrics = pair_metrics(policy, None, pair_losses(policy, None, options))
    assert float(metrics["rewards/ties"]) == 1
    assert float(metrics["rewards/accuracies"]) == 0.5
