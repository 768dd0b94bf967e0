"""How far one model's distributions are from another's, token by token."""

from __future__ import annotations

import torch
from torch import Tensor

from minimind_dpo.objective.lm_head import KEPT_ELEMENTS, Head


def token_kl(policy: Tensor, policy_head: Head, reference: Tensor, reference_head: Head) -> Tensor:
    """KL(policy || reference) of the next token, exactly:

        sum over v of p(v) (log p(v) - log q(v))

    Summed over an answer that the policy drew, it estimates the divergence between answers without
    bias, is never negative, and varies less than the log-ratio of the tokens drawn.

    Args:
        policy: (N, H) states that predict the tokens.
        policy_head: The policy's head.
        reference: (N, H') states of the same tokens.
        reference_head: The reference's head, over the same vocabulary.

    Returns:
        float32 (N,), in nats; float64 where the states are.
    """
    words = max(len(policy_head.weight), 1)
    parts = []
    for p, q in zip(
        policy.split(max(1, KEPT_ELEMENTS // words)),
        reference.split(max(1, KEPT_ELEMENTS // words)),
        strict=True,
    ):
        log_p, log_q = (  # (n, V)
            head.logits(states).log_softmax(-1)
            for head, states in ((policy_head, p), (reference_head, q))
        )
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts)
