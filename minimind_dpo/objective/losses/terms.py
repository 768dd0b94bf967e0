"""What every loss reads of P pairs, and the few quantities that several of them share.

A loss is a function (PairTerms, LossOptions) -> (P,). All tensors here are (P,), in nats unless
stated, and keep the dtype they came in.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from minimind_dpo.objective.losses.divergences import DIVERGENCES
from minimind_dpo.objective.options import LossOptions


@dataclass(frozen=True, slots=True)
class PairTerms:
    """Log-probs of P pairs under policy and reference.

    Attributes:
        policy_chosen: log pi(chosen | prompt), after reduction and length-desensitising.
        policy_rejected: The same of rejected.
        reference_chosen: log ref(chosen | prompt), or None for reference-free losses.
        reference_rejected: The same of rejected.
        chosen_sum: Plain sum of the chosen tokens' log-probs, for likelihood terms.
        chosen_lengths: Scored tokens of chosen, or None where no loss asks for it.
        rejected_lengths: The same of rejected.
        margins: Reward gap that each pair asks for, or None for 0.
        mean_chosen_length: Scored chosen tokens a pair over the whole optimizer step, or None
            to take this batch for the step. Read by `sft` alone.
        reward_shift: BCO's delta, in nats of reward.
    """

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    chosen_sum: Tensor
    chosen_lengths: Tensor | None = None
    rejected_lengths: Tensor | None = None
    margins: Tensor | None = None
    mean_chosen_length: float | Tensor | None = None
    reward_shift: float | Tensor = 0.0

    def reference(self) -> tuple[Tensor, Tensor]:
        """log ref of chosen and of rejected.

        Raises:
            ValueError: There is no reference.
        """
        if self.reference_chosen is None or self.reference_rejected is None:
            raise ValueError(
                "this loss compares the policy with a reference, which was not given: pass the "
                "reference's log-probs, or use a reference-free loss (simpo, orpo, cpo, sft)"
            )
        return self.reference_chosen, self.reference_rejected

    def ratios(self) -> tuple[Tensor, Tensor]:
        """log pi/ref of chosen and of rejected."""
        chosen, rejected = self.reference()
        return self.policy_chosen - chosen, self.policy_rejected - rejected

    def scores(self, options: LossOptions) -> tuple[Tensor, Tensor]:
        """f'(pi/ref) - f'(1) of chosen and of rejected: log-ratios where f is the reverse KL."""
        score = DIVERGENCES[options.f_divergence]
        chosen, rejected = self.ratios()
        return score(chosen, options.f_alpha), score(rejected, options.f_alpha)

    def logit(self, options: LossOptions) -> Tensor:
        """beta (score of chosen - score of rejected) - margin.

        With the reverse KL and no margin this is the implicit reward gap of DPO (Rafailov et al.
        2023, arXiv 2305.18290, eq. 7). The margin is an offset in nats of reward, as in ODPO
        (Amini et al. 2024, arXiv 2402.10571).
        """
        chosen, rejected = self.scores(options)
        return self.less_margin(options.beta * (chosen - rejected))

    def less_margin(self, logit: Tensor) -> Tensor:
        """`logit` with each pair's margin taken off."""
        return logit if self.margins is None else logit - self.margins.to(logit.dtype)

    def per_token(self, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
        """Two sequence quantities, each divided by its scored tokens.

        Raises:
            ValueError: No lengths were given.
        """
        return divide(chosen, self.chosen_lengths), divide(rejected, self.rejected_lengths)


def divide(values: Tensor, lengths: Tensor | None) -> Tensor:
    """`values` (P,) over `lengths` (P,). A completion of no tokens has sum 0 and mean 0.

    Raises:
        ValueError: `lengths` is None.
    """
    if lengths is None:
        raise ValueError(
            "this loss divides by the completions' lengths, which were not given: "
            "pass chosen_lengths and rejected_lengths, tensors (P,) of scored tokens"
        )
    return values / lengths.to(values.dtype).clamp(min=1)
