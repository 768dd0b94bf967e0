"""f-divergences: what stands in for the log-ratio when the penalty is not the reverse KL.

DPO's derivation with a general f-divergence replaces log(pi/ref) by f'(pi/ref) (Wang et al.
2023, "Beyond Reverse KL", arXiv 2309.16240). Each function maps a sequence log-ratio
x = log(pi/ref) (P,) to f'(exp(x)) - f'(1) (P,): the constant would cancel between chosen and
rejected, but for losses that divide each side by its own length.

NOTE: `exp(x) - 1`, not `expm1(x)`: torch takes the gradient of the latter from its value plus 1,
which has no digits left where exp(x) is small.

WARN: `forward_kl` and `alpha_divergence` grow exponentially: a log-ratio beyond about 88 nats
leaves float32. The result is then infinite or NaN on purpose. A clamp would hide the pair and
give it no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def reverse_kl(log_ratio: Tensor, alpha: float) -> Tensor:
    """KL(pi || ref), f(u) = u log u: f'(u) - f'(1) = log u. DPO itself."""
    return log_ratio


def forward_kl(log_ratio: Tensor, alpha: float) -> Tensor:
    """KL(ref || pi), f(u) = -log u: f'(u) - f'(1) = 1 - 1/u."""
    return 1 - torch.exp(-log_ratio)


def js_divergence(log_ratio: Tensor, alpha: float) -> Tensor:
    """Jensen-Shannon: f'(u) = log(2u / (1 + u)) = log 2 + log sigmoid(x), and f'(1) = 0."""
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Tensor, alpha: float) -> Tensor:
    """(u^(alpha - 1) - 1) / (alpha - 1), whose limit at alpha = 1 is the reverse KL's log u.

    The paper's own exponent is 1 - alpha.
    """
    if abs(alpha - 1) < 1e-6:
        return log_ratio
    return (torch.exp((alpha - 1) * log_ratio) - 1) / (alpha - 1)


DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": reverse_kl,
    "forward_kl": forward_kl,
    "js_divergence": js_divergence,
    "alpha_divergence": alpha_divergence,
}
