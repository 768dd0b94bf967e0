"""Losses that need no reference: likelihood on chosen, SimPO, ORPO and CPO.

Likelihood terms average over a completion's own tokens, so that a pair's loss is its own. The one
exception is `sft`, which averages over the tokens of the whole step as supervised training does.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind_dpo.objective.losses.pairwise import smoothed_logistic
from minimind_dpo.objective.losses.terms import PairTerms, divide
from minimind_dpo.objective.options import LossOptions


def sft(terms: PairTerms, options: LossOptions) -> Tensor:
    """Likelihood of chosen: -sum log pi(chosen) over its share of the step's tokens.

    Every chosen token of an optimizer step weighs the same, so a pair's loss is its own negative
    log-likelihood divided by the step's mean completion length. The mean of these over the
    step's pairs is the mean over its tokens, and because the divisor is the step's, micro-batches
    and devices add up. Where the caller does not pass `mean_chosen_length`, the batch is
    taken for the step.
    """
    mean_length = terms.mean_chosen_length
    if mean_length is None:
        if terms.chosen_lengths is None:
            return -divide(terms.chosen_sum, None)
        tokens = terms.chosen_lengths.to(terms.chosen_sum.dtype).sum().clamp(min=1)
        mean_length = tokens / max(terms.chosen_sum.numel(), 1)
    return -terms.chosen_sum / mean_length


def chosen_nll(terms: PairTerms) -> Tensor:
    """-log pi(chosen) in nats a token of that completion, (P,).

    Added to a DPO loss with weight `rpo_alpha` it is RPO (Pang et al. 2024, arXiv 2404.19733,
    eq. 1), which normalises by each completion's own length as this does.
    """
    return -divide(terms.chosen_sum, terms.chosen_lengths)


def simpo(terms: PairTerms, options: LossOptions) -> Tensor:
    """SimPO: -log sigmoid(beta (a_w - a_l) - gamma), a the mean log-prob a token.

    Meng et al. 2024, arXiv 2405.14734, eq. 6.
    """
    chosen, rejected = terms.per_token(terms.policy_chosen, terms.policy_rejected)
    logit = options.beta * (chosen - rejected) - options.simpo_gamma
    return smoothed_logistic(terms.less_margin(logit), options.label_smoothing)


def orpo(terms: PairTerms, options: LossOptions) -> Tensor:
    """ORPO: nll(chosen) - lambda log sigmoid(log odds(chosen) - log odds(rejected)).

    Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7. odds = p / (1 - p) with p the geometric mean
    of the completion's token probabilities. lambda is `loss.beta`. The likelihood is that of the
    completion, where the paper's program takes the prompt in too.
    """
    chosen, rejected = terms.per_token(terms.policy_chosen, terms.policy_rejected)
    log_odds_ratio = (chosen - log1m_exp(chosen)) - (rejected - log1m_exp(rejected))
    return chosen_nll(terms) - options.beta * F.logsigmoid(log_odds_ratio)


def cpo(terms: PairTerms, options: LossOptions) -> Tensor:
    """CPO: -log sigmoid(beta (log pi(chosen) - log pi(rejected))) + alpha nll(chosen).

    Xu et al. 2024, arXiv 2401.08417. alpha is `loss.cpo_alpha`, 1 in the paper. The likelihood
    is in nats a token, as in the authors' program; the paper writes the sequence's sum.
    """
    logit = options.beta * (terms.policy_chosen - terms.policy_rejected)
    preference = smoothed_logistic(terms.less_margin(logit), options.label_smoothing)
    if options.cpo_alpha == 0:
        return preference
    return preference + options.cpo_alpha * chosen_nll(terms)


def log1m_exp(values: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, accurate at both ends; x = 0 is read as the largest x below.

    Near 0 `expm1` keeps the digits of 1 - exp(x), far below 0 `log1p` does (Maechler 2012,
    "Accurately computing log(1 - exp(-|a|))").
    """
    values = values.clamp(max=-torch.finfo(values.dtype).eps)
    near_zero = values > -math.log(2)
    # Each branch gets a harmless value where the other is used: a NaN there would spoil gradients.
    small = torch.where(near_zero, values, torch.full_like(values, -1.0))
    large = torch.where(near_zero, torch.full_like(values, -1.0), values)
    return torch.where(near_zero, (-torch.expm1(small)).log(), torch.log1p(-torch.exp(large)))
