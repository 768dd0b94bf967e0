"""The objective alone: losses, rewards and gradients from log-probs, with any model and trainer.

    python examples/objective_alone.py

Give `preference_loss` the summed log-probs of each answer under policy and reference, in nats; it
gives back a loss a pair, which you average and send backward yourself.
"""

from __future__ import annotations

import torch

from minimind_dpo import preference_loss

# Two pairs. The policy holds the first chosen answer 2 nats likelier than the reference does; it
# holds the second pair as the reference does.
policy_chosen = torch.tensor([-10.0, -12.0], requires_grad=True)
policy_rejected = torch.tensor([-11.0, -12.0], requires_grad=True)
reference_chosen = torch.tensor([-12.0, -12.0])
reference_rejected = torch.tensor([-11.5, -12.0])
logps = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)

# DPO: -log sigmoid(beta (2 - 0.5)) = 0.6210 for the first pair, ln 2 for the second.
losses, chosen_rewards, rejected_rewards = preference_loss(*logps, beta=0.1)
print("dpo      losses  ", losses.tolist())
print("         rewards ", (chosen_rewards - rejected_rewards).tolist())

# The gradient lifts the chosen answer and lowers the rejected one, more where the pair is not yet
# learned: beta times sigmoid(-0.15) = 0.0463 and sigmoid(0) = 0.05, halved by the mean.
losses.mean().backward()
print("         gradient", policy_chosen.grad.tolist(), policy_rejected.grad.tolist())

# IPO regresses the gap of log-ratios a token onto 1 / (2 beta), so it wants lengths.
lengths = {"chosen_lengths": torch.tensor([5, 6]), "rejected_lengths": torch.tensor([4, 6])}
losses, *_ = preference_loss(*logps, type="ipo", beta=0.1, **lengths)
print("ipo      losses  ", losses.tolist())

# Some losses need no reference.
losses, *_ = preference_loss(*logps[:2], type="simpo", beta=2.0, simpo_gamma=0.5, **lengths)
print("simpo    losses  ", losses.tolist())

# Several losses at once: DPO with a share of likelihood, the mean over the chosen answers' tokens.
losses, *_ = preference_loss(*logps, type=["sigmoid", "sft"], weights=[1.0, 0.2], **lengths)
print("dpo + sft losses ", losses.tolist())
