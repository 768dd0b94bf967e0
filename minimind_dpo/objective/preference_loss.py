"""Every preference loss, by name, and the two ways in.

`preference_loss` takes sequence log-probs and needs no trainer. `pair_losses` takes the token
log-probs of a batch and applies what needs tokens: reductions, length-desensitising, WPO weights.
Both give one loss a pair; the caller weighs pairs and divides by those of the whole optimizer
step, so that micro-batches and devices add up. Only AOT, which sorts over the batch, does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minimind_dpo.batch import split_sides
from minimind_dpo.objective.check_options import problems
from minimind_dpo.objective.logps import PairLogps
from minimind_dpo.objective.losses.reference_free import chosen_nll
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.losses.terms import PairTerms
from minimind_dpo.objective.losses.weighting import desensitised_sums, reduced, wpo_weights
from minimind_dpo.objective.options import LossOptions

_OF_TOKENS = {"reduction", "ld_alpha", "wpo", "aux_coef"}


@dataclass(frozen=True, slots=True)
class LossOutput:
    """Losses and implicit rewards of P pairs.

    Attributes:
        losses: (P,) with gradient, not multiplied by the pairs' own weights. AOT's are in sorted
            order.
        components: Each loss by its name, (P,), detached, before `loss.weights`; `rpo` is the
            likelihood term of `loss.rpo_alpha`. WPO weights are in.
        chosen_rewards: beta log pi/ref of chosen, (P,), detached, in nats.
        rejected_rewards: The same of rejected.
        beta: What log-ratios were multiplied by.
    """

    losses: Tensor
    components: dict[str, Tensor]
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    beta: float


def pair_losses(
    policy: PairLogps,
    reference: PairLogps | None,
    options: LossOptions,
    *,
    margins: Tensor | None = None,
    padded_positions: int = 0,
    mean_chosen_length: float | Tensor | None = None,
    reward_shift: float | Tensor = 0.0,
) -> LossOutput:
    """Losses and rewards of a batch, from its token log-probs.

    Rewards are beta times the log-ratio of sums whatever loss and reduction; under `ld_alpha` of
    the desensitised sums, which are that loss's likelihood. Without a reference the log-prob
    stands for the log-ratio, and simpo and orpo, first among the types, divide it by length as
    the losses themselves do.

    Args:
        policy: Log-probs of P pairs with gradient. P may be 0.
        reference: The same tokens under the reference, or None for reference-free losses.
        options: Checked beforehand by `check_options.problems`.
        margins: Reward gap each pair asks for, (P,), or None.
        padded_positions: `PreferenceBatch.padded_positions`.
        mean_chosen_length: Scored chosen tokens over pairs, both of the whole optimizer step: the
            divisor of `sft`. None takes the batch for the step.
        reward_shift: BCO's delta.

    Raises:
        ValueError: Something that the options need is missing, or a margin is not 0 for a loss
            that has none.
    """
    chosen_lengths, rejected_lengths = split_sides(policy.lengths)
    plain = policy.sums
    policy_chosen, policy_rejected = split_sides(_likelihoods(policy, plain, options))
    reference_chosen = reference_rejected = None
    if reference is not None:
        reference_sums = _likelihoods(reference, reference.sums, options)
        reference_chosen, reference_rejected = split_sides(reference_sums)
    terms = PairTerms(
        policy_chosen=policy_chosen,
        policy_rejected=policy_rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        chosen_sum=split_sides(plain)[0],
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        margins=margins,
        mean_chosen_length=mean_chosen_length,
        reward_shift=reward_shift,
    )
    rewards = implicit_rewards(terms, options)
    terms = reduced(terms, options.reduction, padded_positions)
    losses, components = combine(terms, options, wpo_weights(policy) if options.wpo else None)
    return LossOutput(losses, components, *rewards, options.beta)


def preference_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None = None,
    reference_rejected_logps: Tensor | None = None,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    margins: Tensor | None = None,
    mean_chosen_length: float | Tensor | None = None,
    reward_shift: float | Tensor = 0.0,
    **loss: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Any preference loss from sequence log-probs, without a trainer.

    Args:
        policy_chosen_logps: log pi(chosen | prompt), summed over tokens, (P,), in nats.
        policy_rejected_logps: The same of rejected.
        reference_chosen_logps: log ref(chosen | prompt), (P,); None for simpo, orpo, cpo, sft.
        reference_rejected_logps: The same of rejected.
        chosen_lengths: Scored tokens, (P,); for ipo, sigmoid_norm, simpo, orpo, cpo, sft, RPO.
        rejected_lengths: The same of rejected.
        margins, mean_chosen_length, reward_shift: As in `pair_losses`.
        loss: Fields of `LossOptions` by keyword, `type="ipo", beta=0.2`, but those of tokens.

    Returns:
        Losses (P,) with gradient, and the implicit rewards of chosen and of rejected, (P,) each,
        detached: beta times the log-ratio.

    Raises:
        ValueError: A value is out of its range, or no loss of `type` reads it; tensors are not all
            (P,), which torch would broadcast; or something the loss needs is missing.
        TypeError: A keyword is no field of `LossOptions`, or one of tokens.
    """
    _refuse_broadcasting(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        margins=margins,
    )
    if of_tokens := sorted(loss.keys() & _OF_TOKENS):
        raise TypeError(f"preference_loss has sums alone, and loss.{of_tokens[0]} is of tokens")
    options = LossOptions(**loss)
    if wrong := problems(options):
        raise ValueError("preference_loss cannot be computed:\n" + "\n".join(map(str, wrong)))
    terms = PairTerms(
        policy_chosen=policy_chosen_logps,
        policy_rejected=policy_rejected_logps,
        reference_chosen=reference_chosen_logps,
        reference_rejected=reference_rejected_logps,
        chosen_sum=policy_chosen_logps,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        margins=margins,
        mean_chosen_length=mean_chosen_length,
        reward_shift=reward_shift,
    )
    losses, _ = combine(terms, options)
    return losses, *implicit_rewards(terms, options)


def _refuse_broadcasting(**values: Tensor | None) -> None:
    """Raise where tensors are not vectors of one length, naming each with its shape."""
    shapes = {name: tuple(value.shape) for name, value in values.items() if value is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"every tensor has to be (P,), one number for each of the same P pairs; here: {listed}"
        )


def combine(
    terms: PairTerms, options: LossOptions, pair_weights: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the losses (P,), and each by itself, detached and not weighted.

    Args:
        terms: What the losses read.
        options: Which losses.
        pair_weights: WPO's weights (P,), or None. `sft` is no preference loss and keeps its own.

    Raises:
        ValueError: Something that a loss needs is missing, or a margin is not 0 for a loss that
            has none.
    """
    refuse_margins(terms.margins, options)
    total = torch.zeros_like(terms.policy_chosen)
    components: dict[str, Tensor] = {}
    for name, weight in zip(options.type, options.type_weights, strict=True):
        values = LOSSES[name](terms, options)
        if pair_weights is not None and name != "sft":
            values = pair_weights * values
        total = total + weight * values
        components[name] = values.detach()
    if options.rpo_alpha != 0:
        likelihood = chosen_nll(terms)
        total = total + options.rpo_alpha * likelihood
        components["rpo"] = likelihood.detach()
    return total, components


def implicit_rewards(terms: PairTerms, options: LossOptions) -> tuple[Tensor, Tensor]:
    """Rewards of chosen and of rejected, (P,) each, detached, as `pair_losses` defines them."""
    if terms.reference_chosen is not None:
        chosen, rejected = terms.ratios()
    elif options.type[0] in ("simpo", "orpo"):
        chosen, rejected = terms.per_token(terms.policy_chosen, terms.policy_rejected)
    else:
        chosen, rejected = terms.policy_chosen, terms.policy_rejected
    return (options.beta * chosen).detach(), (options.beta * rejected).detach()


def refuse_margins(margins: Tensor | None, options: LossOptions) -> None:
    """Raise ValueError where a pair asks for a margin and a loss has none."""
    # Beside another loss sft has none to ask for, by itself nothing would read the margins.
    names = [name for name in options.type if name != "sft"] or options.type
    without = [name for name in names if "margin" not in LOSSES[name].uses]
    # NOTE: reads one value back from the device, so only where it can matter.
    if margins is not None and without and bool(margins.any()):
        raise ValueError(
            f"loss.type={without[0]} is not a function of the reward gap, so a margin has no "
            "meaning in it: remove the 'margin' column, or use one of "
            + ", ".join(name for name, loss in LOSSES.items() if "margin" in loss.uses)
        )


def _likelihoods(logps: PairLogps, plain: Tensor, options: LossOptions) -> Tensor:
    return plain if options.ld_alpha is None else desensitised_sums(logps, options.ld_alpha)
