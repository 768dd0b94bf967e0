"""Losses of the gap between chosen and rejected, both measured against a reference.

h is the logit of `PairTerms.logit`: with the defaults, DPO's implicit reward gap in nats.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_dpo.objective.losses.terms import PairTerms
from minimind_dpo.objective.options import LossOptions


def smoothed_logistic(logit: Tensor, label_smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(h) - e log sigmoid(-h), (P,).

    With e > 0 this is conservative DPO: labels are wrong with probability e, and the loss has its
    minimum at h = log((1 - e) / e) rather than at infinity (Mitchell 2023, "A note on DPO with
    noisy preferences", https://ericmitchell.ai/cdpo.pdf).
    """
    loss = -F.logsigmoid(logit)
    if label_smoothing == 0:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * F.logsigmoid(-logit)


def sigmoid(terms: PairTerms, options: LossOptions) -> Tensor:
    """DPO: -log sigmoid(h). Rafailov et al. 2023, arXiv 2305.18290, eq. 7.

    With label smoothing it is conservative DPO, see `smoothed_logistic`.
    """
    return smoothed_logistic(terms.logit(options), options.label_smoothing)


def sigmoid_norm(terms: PairTerms, options: LossOptions) -> Tensor:
    """Length-normalised DPO: each score is divided by its completion's tokens first.

    Lambert et al. 2024 (Tulu 3), arXiv 2411.15124, section 5.
    """
    chosen, rejected = terms.per_token(*terms.scores(options))
    logit = terms.less_margin(options.beta * (chosen - rejected))
    return smoothed_logistic(logit, options.label_smoothing)


def hinge(terms: PairTerms, options: LossOptions) -> Tensor:
    """SLiC: max(0, 1 - h). Zhao et al. 2023, arXiv 2305.10425, normalised by the reference.

    The form with h is that of Liu et al. 2023 (RSO), arXiv 2309.06657.
    """
    return torch.relu(1 - terms.logit(options))


def ipo(terms: PairTerms, options: LossOptions) -> Tensor:
    """IPO: (gap - 1 / (2 beta))^2, gap in nats a token. Azar et al. 2023, 2310.12036, eq. 17.

    The paper's tau is beta. Scores are divided by length, without which the target gap would
    mean something else for each length. A margin m moves the target to (1/2 + m) / beta.
    """
    chosen, rejected = terms.per_token(*terms.scores(options))
    gap = terms.less_margin(options.beta * (chosen - rejected)) / options.beta
    return (gap - 1 / (2 * options.beta)).square()


def exo_pair(terms: PairTerms, options: LossOptions) -> Tensor:
    """EXO: KL(q || p) of q = (sigmoid(h), sigmoid(-h)) and p = (1 - e, e).

    Ji et al. 2024, arXiv 2402.00856, eq. 16. e is the label smoothing and must be positive:
    at e = 0 the divergence is infinite.
    """
    logit, smoothing = terms.logit(options), options.label_smoothing
    log_q_chosen, log_q_rejected = F.logsigmoid(logit), F.logsigmoid(-logit)
    chosen = torch.sigmoid(logit) * (log_q_chosen - math.log1p(-smoothing))
    return chosen + torch.sigmoid(-logit) * (log_q_rejected - math.log(smoothing))


def robust(terms: PairTerms, options: LossOptions) -> Tensor:
    """Robust DPO: ((1 - e) L(h) - e L(-h)) / (1 - 2e), L = -log sigmoid.

    Ray Chowdhury et al. 2024, arXiv 2403.00409: an unbiased estimate of the DPO loss
    under labels flipped with probability e < 1/2. It can be negative.
    """
    logit, flipped = terms.logit(options), options.label_smoothing
    loss = (1 - flipped) * -F.logsigmoid(logit) + flipped * F.logsigmoid(-logit)
    return loss / (1 - 2 * flipped)


def discopop(terms: PairTerms, options: LossOptions) -> Tensor:
    """DiscoPOP: (1 - s) (-log sigmoid(h)) + s exp(-h), s = sigmoid(h / tau).

    The log-ratio modulated loss of Lu et al. 2024, arXiv 2406.08414.
    """
    logit = terms.logit(options)
    share = torch.sigmoid(logit / options.discopop_tau)
    return (1 - share) * -F.logsigmoid(logit) + share * torch.exp(-logit)


def aot(terms: PairTerms, options: LossOptions) -> Tensor:
    """AOT for paired data: the policy's gaps dominate the reference's, quantile by quantile.

    Melnyk et al. 2024, arXiv 2406.05882, algorithm 1: h_(i) is beta times the i-th smallest
    log pi(chosen)/pi(rejected) less the i-th smallest of the reference.

    WARN: sorts over the batch. Element i of the result is the i-th quantile and no pair of its
    own, and the loss of a batch is not the sum of its parts' losses.
    """
    policy = (terms.policy_chosen - terms.policy_rejected).sort().values
    reference_chosen, reference_rejected = terms.reference()
    reference = (reference_chosen - reference_rejected).sort().values
    logit = options.beta * (policy - reference)
    return smoothed_logistic(logit, options.label_smoothing)


def aot_unpaired(terms: PairTerms, options: LossOptions) -> Tensor:
    """AOT for unpaired data: chosen log-ratios dominate rejected ones, quantile by quantile.

    Melnyk et al. 2024, arXiv 2406.05882, algorithm 1. WARN: sorts over the batch, as `aot` does.
    """
    chosen, rejected = terms.ratios()
    logit = options.beta * (chosen.sort().values - rejected.sort().values)
    return smoothed_logistic(logit, options.label_smoothing)
