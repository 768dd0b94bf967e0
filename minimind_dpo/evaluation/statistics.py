"""Win rates, what they are worth, and how much more it would take to know.

Prompts are the unit: a value for each prompt, and intervals over the prompts that could have been
asked. All intervals are two-sided at 95%.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

CONFIDENCE: Final = 0.95
POWER: Final = 0.8
"""Chance with which the number of prompts that is named would decide."""

_Z: Final = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_DRAWS: Final = 2000
_NEWTON_STEPS: Final = 25
_USUAL_THETA: Final = 1.0
"""A win rate of 73% at equal length."""
_USUAL_PHI: Final = 3.0
"""A judge that prefers the longer of two equal answers in 90% of cases, at one s."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
        n: Prompts or pairs behind it.
    """

    value: float
    low: float
    high: float
    n: int

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def percent(self) -> str:
        """`61% [54, 68]`."""
        value, low, high = (f"{100 * x:.0f}" for x in (self.value, self.low, self.high))
        return f"{value}% [{low}, {high}]"


def share_interval(shares: np.ndarray) -> Estimate:
    """Mean of shares, ties counted half, with the interval of Agresti and Min (2005).

    Two prompts are added to the n: half a win, half a loss and a tie. The interval is Student's of
    those, so it has a width where all prompts agree, and covers the truth in 93 to 98% of cases
    from 32 prompts on, whatever the share of ties (a test shows it).

    Args:
        shares: float (n,) in [0, 1]: 1 a win, 0.5 a tie, 0 a loss; n >= 1.
    """
    n = len(shares)
    if n == 1:
        return Estimate(float(shares[0]), 0.0, 1.0, 1)
    mean = (float(shares.sum()) + 1.0) / (n + 2)
    variance = (float(np.square(shares).sum()) + 0.75) / (n + 2) - mean * mean
    half = t_quantile(n - 1) * math.sqrt(max(variance, 0.0) / (n + 2))
    return Estimate(float(shares.mean()), max(0.0, mean - half), min(1.0, mean + half), n)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Win rate of one policy less that of another on the same prompts, in [-1, 1].

    Args:
        first: float (n,) in [0, 1], shares of the first policy against the reference.
        second: float (n,), of the second against the same reference on the same prompts.
    """
    shares = share_interval((1.0 + first - second) / 2.0)
    value, low, high = (2.0 * x - 1.0 for x in (shares.value, shares.low, shares.high))
    return Estimate(value, low, high, shares.n)


def prompts_to_decide(shares: np.ndarray) -> int | None:
    """Prompts that would decide a difference as large as the one seen, in four cases of five.

        n = ((z_0.975 + z_0.8) sd / (mean - 1/2))^2

    Args:
        shares: float (n,) in [0, 1].

    Returns:
        None where no difference was seen at all.
    """
    if len(shares) < 2:
        return None
    difference = abs(float(shares.mean()) - 0.5)
    if difference < 1e-9:
        return None
    z = _Z + NormalDist().inv_cdf(POWER)
    return math.ceil((z * float(shares.std(ddof=1)) / difference) ** 2)


def length_controlled(shares: np.ndarray, longer_by: np.ndarray) -> Estimate:
    """Win rate at equal length (Dubois et al. 2024, arXiv 2404.04475).

    A logistic regression with one term for the policy and one for length,

        logit P(win on prompt i) = theta + phi tanh(d_i / s)

    where d_i is by how many tokens the policy's answer is longer, and s the root mean square of d.
    The rate is sigmoid(theta): the length term set to zero. Two policies cannot tell how hard a
    prompt is, so the paper's term for that is left out; s is not the standard deviation, which
    would be 0 where every answer is longer by the same. As in `share_interval` two prompts are
    added, all ties: one of equal length and two halves of length -s and s.

    The variance of theta is that of the sandwich estimator, and the square of what the ties may
    shift it by: their information over all of it, for a theta of `_USUAL_THETA` and a phi of
    `_USUAL_PHI`. Where answers of both kinds are there, this is next to nothing. Where nearly all
    are longer, equal length is beyond what was seen, and the interval says so. For a truth from
    27% to 73% it covers it in 92 to 98% of cases, and in more where next to none is as short.
    Beyond, the ties draw the rate towards one half, most with few prompts (of 32, a truth of 95% is
    covered in 74% alone): then the interval misses on the side of one half (tests show both).

    Args:
        shares: float (n,) in [0, 1]; with fewer than 4 the interval is all there is.
        longer_by: float (n,), tokens.
    """
    n = len(shares)
    if n < 4:
        return Estimate(float(shares.mean()), 0.0, 1.0, n)
    scale = math.sqrt(float(np.square(longer_by).mean())) or 1.0
    length = np.concatenate([np.tanh(longer_by / scale), np.tanh([0.0, -1.0, 1.0])])
    x = np.stack([np.ones(n + 3), length])  # (2, n + 3)
    y = np.concatenate([shares, [0.5, 0.5, 0.5]])
    weight = np.concatenate([np.ones(n), [1.0, 0.5, 0.5]])
    beta = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        p = 1.0 / (1.0 + np.exp(-(beta @ x)))
        information = (x * (weight * p * (1.0 - p))) @ x.T  # (2, 2)
        beta = beta + np.linalg.solve(information, x @ (weight * (y - p)))
    scores = x * (weight * (y - p))
    bread = np.linalg.inv(information)
    of_ties = (x * (weight * p * (1.0 - p)))[:, n:] @ x[:, n:].T
    shift = (bread @ of_ties)[0] * (_USUAL_THETA, _USUAL_PHI)
    variance = (bread @ (scores @ scores.T) @ bread)[0, 0] * n / (n - 2) + np.square(shift).sum()
    half = t_quantile(n - 2) * math.sqrt(variance)
    value, low, high = 1.0 / (1.0 + np.exp(-(beta[0] + np.array([0.0, -half, half]))))
    return Estimate(float(value), float(low), float(high), n)


def bootstrap(
    columns: Sequence[np.ndarray],
    of: Callable[..., np.ndarray] = lambda mean: mean,
    *,
    groups: np.ndarray | None = None,
    share: bool = False,
) -> Estimate:
    """A function of means, with its interval by the Bayesian bootstrap (Rubin 1981).

    Each draw weighs the groups by a Dirichlet distribution. For a share, half a 0 and half a 1 are
    drawn with them: without, a share of 1 would seem certain, and with them, the interval of n
    zeros and ones is Jeffreys'.

    Args:
        columns: float (n,) each.
        of: Their means to the number: m arrays (draws,) to one array (draws,).
        groups: int (n,), rows that come together, such as pairs of one prompt; each alone if None.
        share: The one column is a share in [0, 1].
    """
    n = len(columns[0])
    _, group = np.unique(np.arange(n) if groups is None else groups, return_inverse=True)
    random = np.random.default_rng(0)
    weights = random.standard_exponential((_DRAWS, group.max() + 1))  # (draws, groups)
    total = weights @ np.bincount(group)  # (draws,)
    sums = [weights @ np.bincount(group, column) for column in columns]
    if share:
        zeros, ones = random.standard_gamma(0.5, (2, _DRAWS))
        total, sums = total + zeros + ones, [sums[0] + ones]
    low, high = np.quantile(of(*(each / total for each in sums)), [0.025, 0.975])
    value = of(*(np.array([column.mean()]) for column in columns))[0]
    # A share of 1 lies above every draw.
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), n)


def t_quantile(freedom: int) -> float:
    """97.5% quantile of Student's t, by Cornish and Fisher's expansion; to 1% from 3 on.

    Args:
        freedom: Degrees of freedom, at least 1.
    """
    z, v = _Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
