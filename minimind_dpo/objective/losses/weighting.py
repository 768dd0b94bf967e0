"""From token log-probs to one number a sequence, and how much each pair weighs.

Three reductions: `sum` is log pi(y | x), what DPO is derived for; `mean` divides it by the scored
tokens; `padded_mean` divides it by every label position of the padded rectangle, prompt and
padding included, as early MiniMind programs do.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minimind_dpo.batch import split_sides
from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.losses.terms import PairTerms, divide


def reduced(terms: PairTerms, reduction: str, padded_positions: int) -> PairTerms:
    """`terms` with its sequence log-probs reduced; chosen's plain sum stays.

    Args:
        terms: Log-probs summed over tokens.
        reduction: `sum`, `mean` or `padded_mean`. A sequence of no tokens has mean 0, never NaN.
        padded_positions: Label positions of a row of the rectangle; read by `padded_mean` alone.

    Raises:
        ValueError: `padded_mean` without its number of positions.
    """
    if reduction == "sum":
        return terms
    if reduction == "padded_mean" and padded_positions < 1:
        raise ValueError(
            "loss.reduction=padded_mean divides by the label positions of a padded row, and "
            f"padded_positions={padded_positions}: pass max_length - 1, or use loss.reduction=sum"
        )

    def mean(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        if reduction == "mean":
            return terms.per_token(chosen, rejected)
        assert reduction == "padded_mean", reduction
        return chosen / padded_positions, rejected / padded_positions

    policy = mean(terms.policy_chosen, terms.policy_rejected)
    reference = (None, None) if terms.reference_chosen is None else mean(*terms.reference())
    return replace(
        terms,
        policy_chosen=policy[0],
        policy_rejected=policy[1],
        reference_chosen=reference[0],
        reference_rejected=reference[1],
    )


def desensitised_sums(logps: PairLogps, alpha: float) -> Tensor:
    """Sequence log-probs (2P,) in which tokens beyond the shared length weigh `alpha`.

    LD-DPO (Liu et al. 2024, arXiv 2409.06411): with l the shorter side's length, the first l
    tokens of either side count whole and the rest of the longer one counts `alpha` each. alpha = 1
    is the plain sum, alpha = 0 cuts both sides to the same length.
    """
    chosen, rejected = split_sides(logps.lengths)
    shared = torch.minimum(chosen, rejected).repeat(2)
    whole = token_positions(logps) < shared[logps.sequence_id]
    return logps.sum_per_sequence(torch.where(whole, logps.token_logps, alpha * logps.token_logps))


def token_positions(logps: PairLogps) -> Tensor:
    """Place of each scored token in its own completion, from 0: int64 (N,).

    Tokens of one sequence are in order; sequences may be laid out in any order between them.
    """
    order = torch.argsort(logps.sequence_id, stable=True)
    starts = logps.lengths.cumsum(0) - logps.lengths
    count = torch.arange(order.numel(), device=order.device)
    positions = torch.empty_like(order)
    positions[order] = count - starts[logps.sequence_id[order]]
    return positions


def wpo_weights(policy: PairLogps) -> Tensor:
    """How likely the policy itself would write each pair, (P,), without gradient.

    WPO (Zhou et al. 2024, arXiv 2406.11827, eq. 2, aligned to sampled sequences): exp of the
    mean over tokens of log p(token) - log sum p^2, chosen and rejected multiplied. The second
    term is the log of the probability expected of a sampled token, so a pair as likely as
    one that the policy writes weighs about 1. Weights above 1 are kept.

    Raises:
        ValueError: The log-probs were computed without `log_sum_sq_probs`.
    """
    if policy.log_sum_sq_probs is None:
        raise ValueError(
            "loss.wpo=true needs the sum of squared probabilities at every scored token, which "
            "the policy's log-probs do not carry: ask for log_sum_sq_probs when computing them"
        )
    aligned = (policy.token_logps - policy.log_sum_sq_probs).detach()
    chosen, rejected = split_sides(divide(policy.sum_per_sequence(aligned), policy.lengths))
    return (chosen + rejected).exp()
