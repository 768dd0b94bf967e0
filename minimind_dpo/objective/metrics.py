"""Metrics as sums over pairs, so that means are exact however the pairs were split.

A mean of batch means weighs a pair by the size of the batch it fell in. Here every batch, device
and micro-batch contributes sums and counts; only at the end is one divided by the other. Names
are those that TRL logs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from minimind_dpo.batch import split_sides
from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import LossOutput

PAIRS = "pairs"
"""Key of the number of pairs, what sums are divided by."""

ENTROPY_TOKENS = "entropy_tokens"
"""Key of the number of scored tokens, what the sum of `entropy` is divided by."""

_DIVISORS = {"entropy": ENTROPY_TOKENS}


@torch.no_grad()
def pair_metrics(
    policy: PairLogps,
    reference: PairLogps | None,
    output: LossOutput,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Sums over the P pairs of a batch; with P = 0 the same keys, all 0.

    Args:
        policy: Log-probs of the policy.
        reference: Log-probs of the reference, or None.
        output: Losses and rewards.
        weights: Each pair's weight in the loss, (P,), or None for 1. They enter `loss` alone, so
            that its mean is the loss that is minimised.

    Returns:
        Scalars, summed in float64 where the device has it. `rewards/accuracies` counts a tie (a
        gap of rewards within `reward_rounding`) as half and `rewards/ties` counts ties; `logps/*`
        and `logratios/*` are of plain sums in nats, whatever the loss makes of them;
        `loss/<name>` is each loss by itself where there are several; `entropy` is over scored
        tokens, counted by `entropy_tokens`; `pairs` is P.
    """
    wide = _widest(policy.token_logps.device)
    losses = output.losses.to(wide)
    chosen, rejected = output.chosen_rewards.to(wide), output.rejected_rewards.to(wide)
    ties = ((chosen - rejected).abs() <= reward_rounding(policy, reference, output)).to(wide)
    logps = split_sides(policy.sum_per_sequence(policy.token_logps.to(wide)))
    values = {
        "loss": losses if weights is None else losses * weights.to(wide),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": torch.where(ties > 0, ties / 2, (chosen > rejected).to(wide)),
        "rewards/ties": ties,
        "rewards/margins": chosen - rejected,
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    if reference is not None:
        log_ratios = policy.token_logps.to(wide) - reference.token_logps.to(wide)
        ratios = split_sides(policy.sum_per_sequence(log_ratios))
        values |= {"logratios/chosen": ratios[0], "logratios/rejected": ratios[1]}
    if len(output.components) > 1:
        values |= {f"loss/{name}": loss.to(wide) for name, loss in output.components.items()}
    sums = {name: value.sum() for name, value in values.items()}
    # Not torch.tensor, whose copy to a device waits.
    sums[PAIRS] = torch.full((), float(policy.num_pairs), dtype=wide, device=losses.device)
    if policy.entropy is not None:
        sums["entropy"] = policy.entropy.to(wide).sum()
        sums[ENTROPY_TOKENS] = torch.full_like(sums[PAIRS], policy.entropy.numel())
    return sums


def reward_rounding(policy: PairLogps, reference: PairLogps | None, output: LossOutput) -> Tensor:
    """Gap between the rewards of a pair, (P,), that rounding alone explains, in nats of reward.

    A sum of log-probs is rounded to its own last place as each token is added, and each of its n
    log-probs to the last place of a logit, whose size is about 16; the latter are independent and
    add up to sqrt(n). With eps of their dtype and the four sums S of a pair

        beta eps (2 sum |S| + 16 sqrt(n_chosen + n_rejected))

    Where policy and reference were the same and scored in other batches, gaps of 9 to 905 tokens
    were 0.01 to 0.5 of this. Half precision of the model adds far more, which nothing tells from
    learning.
    """
    eps = torch.finfo(output.chosen_rewards.dtype).eps
    if reference is None:
        return eps * (output.chosen_rewards.abs() + output.rejected_rewards.abs())
    sizes = policy.sums.detach().abs() + reference.sums.abs()
    chosen, rejected = split_sides(sizes)
    tokens = sum(split_sides(policy.lengths)).to(sizes.dtype)
    return output.beta * eps * (2 * (chosen + rejected) + 16 * tokens.sqrt())


def metric_names(
    options: LossOptions, *, reference: bool = True, entropy: bool = True
) -> tuple[str, ...]:
    """Keys that `pair_metrics` will return, for a device that may be given no pair at all.

    Args:
        options: The loss.
        reference: Whether `pair_metrics` gets a reference.
        entropy: Whether the policy's log-probs carry entropies.
    """
    names = [PAIRS, "loss", "logps/chosen", "logps/rejected"]
    names += [f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "ties", "margins")]
    if reference:
        names += ["logratios/chosen", "logratios/rejected"]
    components = [*options.type, *(["rpo"] if options.rpo_alpha else [])]
    if len(components) > 1:
        names += [f"loss/{name}" for name in components]
    if entropy:
        names += ["entropy", ENTROPY_TOKENS]
    return tuple(sorted(names))


class MetricSums:
    """Adds up `pair_metrics` over batches, and over devices by one all-reduce.

    Keys are in alphabetical order, so that the flat tensors of all devices line up. A device that
    may see no pair must be given the names beforehand, or its tensor would be shorter.

    Args:
        names: Keys to start with, at 0; see `metric_names`.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._sums = {name: torch.zeros((), dtype=torch.float64) for name in names}
        self._fresh = True

    @property
    def names(self) -> tuple[str, ...]:
        """Keys, counts included, in the order of `flat`."""
        return tuple(sorted(self._sums))

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add a batch's sums. Does not wait for the device.

        Raises:
            ValueError: The keys differ from those of the batches before.
        """
        if self._sums and self._sums.keys() != sums.keys():
            differing = ", ".join(sorted(self._sums.keys() ^ sums.keys()))
            raise ValueError(
                f"metrics of this batch differ from those before by {differing}, so their means "
                "would be over different pairs: use another MetricSums for another kind of batch"
            )
        wide = {name: value.detach().to(_widest(value.device)) for name, value in sums.items()}
        # Sums that were there before the first batch may lie on another device.
        self._sums = wide if self._fresh else {n: self._sums[n].to(v) + v for n, v in wide.items()}
        self._fresh = False

    def add_sums(self, other: MetricSums, where: Tensor) -> None:
        """Add those of another with the same names if a scalar is true, else 0.

        Does not wait for the device.
        """
        more = torch.where(where, other.flat().to(where.device), 0.0)  # (K,)
        self.load(more if self._fresh else self.flat().to(more) + more)

    def load(self, flat: Tensor) -> None:
        """Go on from sums (K,) that `flat` gave, of the same names."""
        self._sums = dict(zip(self.names, flat.unbind(), strict=True))
        self._fresh = False

    def flat(self) -> Tensor:
        """All sums as one tensor (K,), in the order of `names`, to be summed over devices."""
        if not self._sums:
            return torch.zeros(0, dtype=torch.float64)
        return torch.stack([self._sums[name] for name in self.names])

    def means(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float]:
        """Sums over their counts, in order of `names`; empty where no pair was added.

        Args:
            reduce: Sums `flat` over devices, called exactly once; None on a single one. The sums
                kept here stay those of this device.
        """
        flat = self.flat() if reduce is None else reduce(self.flat())
        sums = dict(zip(self.names, flat.tolist(), strict=True))
        counts = {PAIRS, *_DIVISORS.values()}
        return {
            name: value / count
            for name, value in sums.items()
            if name not in counts and (count := sums[_DIVISORS.get(name, PAIRS)]) > 0
        }

    @property
    def pairs(self) -> int:
        """Pairs added on this device."""
        return int(self._sums.get(PAIRS, torch.zeros(())))

    def reset(self) -> None:
        """Back to 0; the keys stay."""
        self._sums = {name: torch.zeros_like(value) for name, value in self._sums.items()}
        self._fresh = True


def _widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices that lack it (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64
