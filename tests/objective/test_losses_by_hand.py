"""Every loss on one pair whose value can be worked out on paper.

log pi: chosen -2, rejected -5; log ref: chosen -3, rejected -4; 2 and 4 tokens; beta 0.5. So the
log-ratios are +1 and -1, the rewards +0.5 and -0.5, the gap h = 1, the mean log-probs -1 and -1.25.
Below, sp(x) = log(1 + e^x) and s(x) = 1 / (1 + e^-x).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.losses.reference_free import log1m_exp
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.losses.weighting import token_positions
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import pair_losses, preference_loss


def one_pair(**settings: Any) -> float:
    values = [torch.tensor([value], dtype=torch.float64) for value in (-2.0, -5.0, -3.0, -4.0)]
    lengths = {"chosen_lengths": torch.tensor([2]), "rejected_lengths": torch.tensor([4])}
    losses, chosen, rejected = preference_loss(*values, **{"beta": 0.5, **lengths, **settings})
    assert chosen.item() == settings.get("beta", 0.5)
    assert rejected.item() == -settings.get("beta", 0.5)
    return losses.item()


HAND = {
    "sigmoid": ({}, 0.3132616875),  # sp(-1)
    "hinge": ({"beta": 0.25}, 0.5),  # 1 - 0.5
    "ipo": ({}, 0.0625),  # gap 1/2 + 1/4 = 0.75 a token, target 1: 0.25^2
    # s(1) (log s(1) - log 0.9) + s(-1) (log s(-1) - log 0.1)
    "exo_pair": ({"label_smoothing": 0.1}, 0.1140821077),
    "nca_pair": ({}, 1.1981539684),  # sp(-0.5) + sp(0.5)/2 + sp(-0.5)/2
    "robust": ({"label_smoothing": 0.1}, 0.1882616875),  # (0.9 sp(-1) - 0.1 sp(1)) / 0.8
    "bco_pair": ({}, 0.9481539684),  # 2 sp(-0.5)
    "sppo_hard": ({"beta": 0.25}, 2.0),  # (1 - 2)^2 + (-1 + 2)^2
    "aot": ({}, 0.3132616875),  # one pair: sorting changes nothing
    "aot_unpaired": ({}, 0.3132616875),
    "apo_zero": ({}, 0.7550813376),  # 2 s(-0.5)
    "apo_down": ({}, 0.8914007526),  # s(0.5) + s(-1)
    "discopop": ({"discopop_tau": 0.5}, 0.3613688453),  # (1 - s(2)) sp(-1) + s(2) / e
    "sigmoid_norm": ({}, 0.5231232641),  # sp(-0.5 * 0.75)
    "sft": ({}, 1.0),  # 2 nats over 2 tokens
    "simpo": ({"simpo_gamma": 0.5}, 0.8981232641),  # sp(0.5 - 0.5 * 0.25)
    # 1 + 0.5 log(1 + odds(e^-1.25) / odds(e^-1))
    "orpo": ({}, 1.2623577526),
    "cpo": ({}, 1.2014132780),  # sp(-0.5 * 3) + 2 nats over 2 tokens
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_of_one_pair_is_what_paper_and_pencil_give(name):
    settings, expected = HAND[name]
    assert one_pair(type=name, **settings) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward_kl", 0.2690777199),  # sp(-0.5 (e - 1/e))
        ("js_divergence", 0.4740769842),  # sp(-0.5 (log s(1) - log s(-1))) = sp(-0.5)
        ("alpha_divergence", 0.3020887322),  # sp(-(e^0.5 - e^-0.5))
    ],
)
def test_divergence_replaces_the_log_ratio(name, expected):
    assert one_pair(f_divergence=name, f_alpha=0.5) == pytest.approx(expected, abs=1e-9)


def test_conservative_dpo_mixes_in_the_flipped_label():
    assert one_pair(label_smoothing=0.1) == pytest.approx(0.4132616875, abs=1e-9)


def test_margin_asks_for_that_much_more_reward():
    """sp(0.6 - 1) for a margin of 0.6; IPO's target moves by 0.6 / 0.5 to 2.2."""
    margins = torch.tensor([0.6])
    assert one_pair(margins=margins) == pytest.approx(0.5130152524, abs=1e-7)
    assert one_pair(type="ipo", margins=margins) == pytest.approx((0.75 - 2.2) ** 2, abs=1e-6)
    with pytest.raises(ValueError, match="not a function of the reward gap"):
        one_pair(type="bco_pair", margins=margins)
    with pytest.raises(ValueError, match=r"loss\.type=sft is not a function of the reward gap"):
        one_pair(type="sft", margins=margins)
    assert one_pair(type=["sigmoid", "sft"], margins=margins) > one_pair(type=["sigmoid", "sft"])
    assert one_pair(type="bco_pair", margins=torch.zeros(1)) == one_pair(type="bco_pair")


def test_weighted_losses_are_summed_with_rpo_on_top():
    """sp(-1) + 0.2 * 1 + 0.5 * 1."""
    total = one_pair(type=["sigmoid", "sft"], weights=[1.0, 0.2], rpo_alpha=0.5)
    assert total == pytest.approx(0.3132616875 + 0.2 + 0.5, abs=1e-9)


def test_reward_shift_moves_both_sides_of_bco():
    """sp(-(0.5 - 0.5)) + sp(-0.5 - 0.5) = ln 2 + sp(-1)."""
    assert one_pair(type="bco_pair", reward_shift=0.5) == pytest.approx(1.0064088681, abs=1e-9)


def test_missing_inputs_are_named():
    chosen = torch.zeros(2)
    with pytest.raises(ValueError, match="reference"):
        preference_loss(chosen, chosen)
    with pytest.raises(ValueError, match="chosen_lengths"):
        preference_loss(chosen, chosen, type="simpo")
    with pytest.raises(ValueError, match=r"loss\.beta=0"):
        preference_loss(chosen, chosen, chosen, chosen, beta=0)


def test_aot_compares_quantiles_of_the_gap_and_of_the_rewards():
    """Two pairs, log-ratios (3, 0) and (-1, 1): sorted (0, 3) and (-1, 1) give gaps 1 and 2."""
    policy = [torch.tensor(v, dtype=torch.float64) for v in ([3.0, 0.0], [-1.0, 1.0])]
    zero = torch.zeros(2, dtype=torch.float64)
    losses, *_ = preference_loss(*policy, zero, zero, type="aot_unpaired", beta=1.0)
    sp = [0.3132616875, 0.1269280110]
    assert losses.tolist() == pytest.approx(sp, abs=1e-9)
    # Gaps of the policy 4 and -1, of the reference 0 and 0: sorted, -1 and 4.
    losses, *_ = preference_loss(*policy, zero, zero, type="aot", beta=1.0)
    assert losses.tolist() == pytest.approx([1.3132616875, 0.0181499279], abs=1e-9)


def logps(rows: list[list[float]], log_sum_sq_probs: Tensor | None = None) -> PairLogps:
    lengths = torch.tensor([len(row) for row in rows])
    return PairLogps(
        torch.tensor([value for row in rows for value in row], dtype=torch.float64),
        torch.arange(len(rows)).repeat_interleave(lengths),
        lengths,
        log_sum_sq_probs=log_sum_sq_probs,
    )


def test_tokens_beyond_the_shared_length_weigh_ld_alpha():
    """Chosen 1 + 1, rejected 1 + 1 + 4 * 0.25; reference 0: rewards -2 and -3 times beta 1."""
    policy, reference = logps([[-1, -1], [-1, -1, -4]]), logps([[0, 0], [0, 0, 0]])
    output = pair_losses(policy, reference, LossOptions(beta=1.0, ld_alpha=0.25))
    assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == (-2.0, -3.0)
    assert output.losses.item() == pytest.approx(0.3132616875, abs=1e-9)


def test_token_positions_hold_in_any_order_of_sequences():
    ids = torch.tensor([1, 0, 1, 0, 0])
    mixed = PairLogps(torch.zeros(5), ids, torch.tensor([3, 2]))
    assert token_positions(mixed).tolist() == [0, 0, 1, 1, 2]


def test_wpo_weighs_a_pair_by_its_likelihood_against_a_sampled_one():
    """Mean of log p - log sum p^2: chosen (0 + 1) / 2, rejected -1; the weight is e^-0.5."""
    log_sum_sq = torch.tensor([-1.0, -2.0, 0.0], dtype=torch.float64)
    policy = logps([[-1, -1], [-1]], log_sum_sq)
    reference = logps([[-1, -1], [-1]])
    output = pair_losses(policy, reference, LossOptions(type=("sigmoid", "sft"), wpo=True))
    assert output.components["sigmoid"].item() == pytest.approx(0.6931471806 * 0.6065306597)
    assert output.components["sft"].item() == pytest.approx(1.0)
    with pytest.raises(ValueError, match="log_sum_sq_probs"):
        pair_losses(reference, reference, LossOptions(wpo=True))


def test_reductions_divide_by_tokens_or_by_padded_positions():
    """Log-ratios +2 over 2 tokens and -3 over 3: gap 5, 2 a token, and 5/10 over ten positions."""
    policy, reference = logps([[0, 0], [-1, -1, -1]]), logps([[-1, -1], [0, 0, 0]])
    sp = {"sum": 0.0067153485, "mean": 0.1269280110, "padded_mean": 0.4740769842}
    for reduction, expected in sp.items():
        options = LossOptions(beta=1.0, reduction=reduction)
        output = pair_losses(policy, reference, options, padded_positions=10)
        assert output.losses.item() == pytest.approx(expected, abs=1e-9)
        assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == (2.0, -3.0)
    with pytest.raises(ValueError, match="padded_positions=0"):
        pair_losses(policy, reference, LossOptions(reduction="padded_mean"))


def test_a_completion_of_no_token_is_zero_and_not_nan():
    policy, reference = logps([[], [-1.0]]), logps([[], [-1.0]])
    for options in (LossOptions(reduction="mean"), LossOptions(type=("ipo",))):
        assert torch.isfinite(pair_losses(policy, reference, options).losses).all()


def test_no_pairs_give_no_losses():
    empty = PairLogps(
        torch.zeros(0),
        torch.zeros(0, dtype=torch.long),
        torch.zeros(0).long(),
        None,
        torch.zeros(0),
    )
    for name in LOSSES:
        options = LossOptions(type=(name,), label_smoothing=0.1)
        output = pair_losses(empty, empty, options, mean_chosen_length=3.0)
        assert output.losses.shape == output.chosen_rewards.shape == (0,)
        assert pair_losses(empty, empty, options).losses.shape == (0,)


def test_rewards_without_a_reference_are_those_of_the_loss():
    """beta times the log-prob; simpo and orpo divide it by length, as the losses do."""
    policy = logps([[-1, -1], [-2, -2, -2]])
    for name, expected in {"cpo": (-1.0, -3.0), "sft": (-1.0, -3.0), "simpo": (-0.5, -1.0)}.items():
        output = pair_losses(policy, None, LossOptions(type=(name,), beta=0.5))
        assert (output.chosen_rewards.item(), output.rejected_rewards.item()) == expected


def test_log1m_exp_keeps_its_digits_at_both_ends():
    values = torch.tensor([-1e-10, -1.0, -50.0, 0.0], dtype=torch.float64, requires_grad=True)
    result = log1m_exp(values)
    # log(1e-10); log(1 - 1/e); -e^-50; log of the machine epsilon
    expected = [-23.0258509299, -0.4586751454, -1.9287498e-22, -36.0436533891]
    assert result.tolist() == pytest.approx(expected, rel=1e-8)
    result.sum().backward()
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize(
    ("position", "shape"), [(0, (4, 1)), (1, (1,)), (2, (4, 1)), (3, (1,)), (2, ())]
)
def test_shapes_that_torch_would_broadcast_are_refused(position, shape):
    values = [torch.zeros(4) for _ in range(4)]
    values[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"has to be \(P,\).*_logps \(4,\)"):
        preference_loss(*values)


def test_lengths_and_margins_have_one_number_a_pair_too():
    four = [torch.zeros(4) for _ in range(4)]
    with pytest.raises(ValueError, match=r"margins \(1,\)"):
        preference_loss(*four, margins=torch.zeros(1))
    with pytest.raises(ValueError, match=r"chosen_lengths \(4, 1\)"):
        preference_loss(*four, type="ipo", chosen_lengths=torch.ones(4, 1))


def test_an_option_that_the_loss_does_not_read_is_refused():
    four = [torch.zeros(4) for _ in range(4)]
    with pytest.raises(ValueError, match=r"loss.label_smoothing=0.1: is not read by .*hinge"):
        preference_loss(*four, type="hinge", label_smoothing=0.1)
