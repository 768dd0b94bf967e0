"""Bradley-Terry on features of answers, with ridge, and with length taken out.

    P(chosen beats rejected) = sigmoid(w . x),    x = f(chosen) - f(rejected) - b l

l is the log of how many times longer the chosen answer is. b is the slope of the features'
difference on l over the training pairs, whose intercept is what the preference itself does: among
pairs that are preferred alike, x has nothing of length left, and so w . x has not either. There is
no intercept in the model: swapping two answers flips the sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

RIDGES: Final = tuple(10.0**power for power in range(-2, 5))
"""Weights of |w|^2 / 2 that are tried, on features of unit size."""
_FOLDS: Final = 5
_NEWTON_STEPS: Final = 6


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """A fitted model.

    Attributes:
        weights: float64 (F,), on features of unit size.
        scale: float64 (F,), root mean square of each feature's difference.
        by_length: float64 (F,), b.
        ridge: The one of `RIDGES` that predicted left-out pairs best.
    """

    weights: np.ndarray
    scale: np.ndarray
    by_length: np.ndarray
    ridge: float

    def prefer(self, difference: np.ndarray, length: np.ndarray) -> np.ndarray:
        """w . x: positive where the first answer is better.

        Args:
            difference: float (n, F), features of the first answer less those of the second.
            length: float (n,), log of how many times longer the first one is.
        """
        return (difference - np.outer(length, self.by_length)) / self.scale @ self.weights


def fit(difference: np.ndarray, length: np.ndarray, groups: np.ndarray) -> BradleyTerry:
    """Fit on training pairs; the ridge is chosen by cross-validation.

    Args:
        difference: float (n, F), features of the chosen answer less those of the rejected one.
        length: float (n,), log of how many times longer the chosen one is.
        groups: int (n,); pairs of one group (a prompt) are left out together.
    """
    difference = difference.astype(np.float64)
    spread = length - length.mean()
    by_length = spread @ difference / max(float(spread @ spread), 1e-12)
    x = difference - np.outer(length, by_length)
    scale = np.sqrt(np.square(x).mean(0))
    scale = np.where(scale > 1e-12, scale, 1.0)
    # Rotated into as few directions as there are pairs: w lies in their span.
    _, _, directions = np.linalg.svd(x / scale, full_matrices=False)  # (min(n, F), F)
    z = (x / scale) @ directions.T
    fold = np.unique(groups, return_inverse=True)[1] % _FOLDS
    losses = np.zeros(len(RIDGES))
    for left_out in range(_FOLDS):
        inside, outside = z[fold != left_out], z[fold == left_out]
        path = _path(inside) if len(inside) else np.zeros((len(RIDGES), z.shape[1]))
        losses += np.logaddexp(0.0, -(path @ outside.T)).sum(1)
    best = int(losses.argmin())
    weights = _path(z)[best] @ directions
    return BradleyTerry(weights, scale, by_length, RIDGES[best])


def _path(z: np.ndarray) -> np.ndarray:
    """Weights (ridges, d) that minimise sum log(1 + exp(-w . z)) + ridge |w|^2 / 2, by Newton."""
    w = np.zeros(z.shape[1])
    found = {}
    for ridge in sorted(RIDGES, reverse=True):  # each begins where the stronger one ended
        for _ in range(_NEWTON_STEPS):
            p = 1.0 / (1.0 + np.exp(-np.clip(z @ w, -30.0, 30.0)))
            hessian = (z * (p * (1.0 - p))[:, None]).T @ z + ridge * np.eye(len(w))
            step = np.linalg.solve(hessian, z.T @ (1.0 - p) - ridge * w)
            w = w + step
            if np.abs(step).max(initial=0.0) < 1e-6:
                break
        found[ridge] = w
    return np.stack([found[ridge] for ridge in RIDGES])
