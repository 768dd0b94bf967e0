"""Losses that pull on each side's implicit reward by itself, not on the gap alone.

r_w = beta log pi/ref of chosen and r_l = beta log pi/ref of rejected. No f-divergence is defined
for these: constants that cancel in a gap do not cancel here. No margin is, either.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_dpo.objective.losses.terms import PairTerms
from minimind_dpo.objective.options import LossOptions


def rewards(terms: PairTerms, options: LossOptions) -> tuple[Tensor, Tensor]:
    """r_w and r_l, (P,) each."""
    chosen, rejected = terms.ratios()
    return options.beta * chosen, options.beta * rejected


def nca_pair(terms: PairTerms, options: LossOptions) -> Tensor:
    """NCA of two: -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l).

    Chen et al. 2024, arXiv 2402.05369: noise-contrastive alignment for preference data.
    """
    chosen, rejected = rewards(terms, options)
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(terms: PairTerms, options: LossOptions) -> Tensor:
    """BCO: -log sigmoid(r_w - delta) - log sigmoid(-(r_l - delta)).

    Jung et al. 2024, arXiv 2404.04656. delta, the shift between the two classes, is
    `terms.reward_shift`: 0 unless the caller follows the paper and passes a running mean of the
    rewards. It is never read off this batch, so that a pair's loss does not depend on neighbours.
    """
    chosen, rejected = rewards(terms, options)
    shift = terms.reward_shift
    return -F.logsigmoid(chosen - shift) - F.logsigmoid(shift - rejected)


def sppo_hard(terms: PairTerms, options: LossOptions) -> Tensor:
    """SPPO with hard labels: (r_w/beta - 1/(2 beta))^2 + (r_l/beta + 1/(2 beta))^2.

    Wu et al. 2024, arXiv 2405.00675: a win probability of 1 for chosen and 0 for rejected, with
    1/eta = beta.
    """
    half = 1 / (2 * options.beta)
    chosen, rejected = terms.ratios()
    return (chosen - half).square() + (rejected + half).square()


def apo_zero(terms: PairTerms, options: LossOptions) -> Tensor:
    """APO-zero: 1 - sigmoid(r_w) + sigmoid(r_l): raise chosen, lower rejected.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7. For chosen answers that are better than
    the policy's own. sigmoid(-x) stands for 1 - sigmoid(x), which would round to 0.
    """
    chosen, rejected = rewards(terms, options)
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down(terms: PairTerms, options: LossOptions) -> Tensor:
    """APO-down: sigmoid(r_w) + 1 - sigmoid(r_w - r_l): lower both, rejected more.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8. For a policy that is better than the
    chosen answers.
    """
    chosen, rejected = rewards(terms, options)
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)
