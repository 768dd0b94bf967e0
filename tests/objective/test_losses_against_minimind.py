"""The five loss rules that MiniMind's own programs have had, from logits to gradient norm."""

from __future__ import annotations

import pytest
import torch
from golden_support import numbers
from torch import Tensor

from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import pair_losses

REDUCTIONS = {
    "v_learn_padmean": "padded_mean",
    "upstream_2025_02_padmean": "padded_mean",
    "upstream_2025_04_maskmean": "mean",
    "upstream_2025_10_maskmean_clamped": "mean",
    "upstream_2026_03_sum": "sum",
}


def scored(logits: Tensor, labels: Tensor, mask: Tensor) -> PairLogps:
    """Log-probs of the masked-in labels; labels are already shifted."""
    token_logps = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    rows, columns = mask.nonzero(as_tuple=True)
    return PairLogps(token_logps[rows, columns], rows, mask.sum(-1))


@pytest.mark.parametrize("rule", REDUCTIONS)
def test_every_rule_minimind_has_had_is_a_reduction(rule: str):
    cases = numbers("minimind/dpo_loss")["cases"]
    assert len(cases) == 5
    undefined = 0
    for case in cases:
        labels, mask = torch.tensor(case["labels"]), torch.tensor(case["mask"])
        reference = scored(torch.tensor(case["ref_logits"]), labels, mask)
        for beta in (0.1, 0.15):
            logits = torch.tensor(case["policy_logits"], requires_grad=True)
            output = pair_losses(
                scored(logits, labels, mask),
                reference,
                LossOptions(beta=beta, reduction=REDUCTIONS[rule]),
                padded_positions=labels.shape[1],
            )
            loss = output.losses.mean()
            loss.backward()
            assert logits.grad is not None
            expected = case["results"][f"{rule}|beta={beta}"]
            if expected["loss"] is None:
                # 0/0: the rule divided by the length of a completion that has no token. Here,
                # as in the rule that replaced it, such a completion has mean 0.
                assert (case["kind"], rule) == ("one_empty_mask", "upstream_2025_04_maskmean")
                expected = case["results"][f"upstream_2025_10_maskmean_clamped|beta={beta}"]
                undefined += 1
            assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
            norm = expected["grad_norm_wrt_policy_logits"]
            assert logits.grad.norm().item() == pytest.approx(norm, rel=1e-5)
    assert undefined == (2 if rule == "upstream_2025_04_maskmean" else 0)
