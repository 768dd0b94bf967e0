"""Refuse loss options that have no meaning, before anything is loaded, all at once.

Three grades, each told once there is none of the one before: values by themselves, combinations for
which no formula exists, and settings that the chosen losses would not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.options.limits import NOT_NEGATIVE, limit_problems
from minimind_dpo.options.problem import Problem, did_you_mean


def problems(options: LossOptions) -> list[Problem]:
    """Everything wrong with `options`. Never raises."""
    wrong = [*_names(options), *_weights(options), *limit_problems(options, "loss.")]
    return wrong or list(_combinations(options)) or list(_unread(options))


def needs_reference(options: LossOptions) -> bool:
    """Whether any of the losses reads the reference. Types must be known ones."""
    return any(LOSSES[name].reference for name in options.type)


def supports_margins(options: LossOptions) -> bool:
    """Whether a margin per pair has a meaning: every preference loss must have one."""
    preferences = [name for name in options.type if name != "sft"]
    return bool(preferences) and all("margin" in LOSSES[name].uses for name in preferences)


def padded_mean_warning(beta: float, padded_positions: int) -> str:
    """What `padded_mean` over so many label positions of a row (max_length - 1) does to beta."""
    effective = beta / max(padded_positions, 1)
    gap = 50.0
    loss, plain = (math.log1p(math.exp(-b * gap)) for b in (effective, beta))
    return (
        f"loss.reduction=padded_mean averages log-probs over all {padded_positions} positions of "
        f"the padded row, so loss.beta={beta:g} acts like {effective:.3g}: a pair that the policy "
        f"already tells apart by {gap:g} nats still has loss {loss:.4f} (with "
        f"loss.reduction=sum, {plain:.4f}), and the loss stays near 0.693. It is meant for "
        "comparison with programs that do this; set loss.reduction=sum to train"
    )


def _names(options: LossOptions) -> Iterator[Problem]:
    if not options.type:
        yield Problem("loss.type", "must be one or more names", "For example [sigmoid].", [])
    for name in options.type:
        if not isinstance(name, str) or name not in LOSSES:
            why = f"is not a loss: use one of {', '.join(LOSSES)}"
            yield Problem("loss.type", why, did_you_mean(str(name), LOSSES), name)
    if len(set(map(str, options.type))) < len(options.type):
        fix = "Add their loss.weights instead."
        yield Problem("loss.type", "names a loss twice", fix, options.type)


def _weights(options: LossOptions) -> Iterator[Problem]:
    weights = options.weights
    if weights is None:
        return
    if len(weights) != len(options.type):
        why = f"has {len(weights)} values for {len(options.type)} of loss.type"
    elif not all(weight in NOT_NEGATIVE for weight in weights):
        why = "must be finite numbers of at least 0"
    elif not any(weights):
        why = "are all 0, so that nothing would be trained"
    else:
        return
    yield Problem("loss.weights", why, value=weights)


def _combinations(options: LossOptions) -> Iterator[Problem]:
    if "exo_pair" in options.type and options.label_smoothing == 0:
        why = "gives rejected a target of 0 in loss.type=exo_pair, an infinite divergence"
        yield Problem("loss.label_smoothing", why, "Set it to 0.001.", 0)
    settings = {
        "f_divergence": options.f_divergence != "reverse_kl",
        "reduction": options.reduction != "sum",
        "ld_alpha": options.ld_alpha is not None,
        "wpo": options.wpo,
        "rpo_alpha": options.rpo_alpha != 0,
    }
    for key in (key for key, is_asked in settings.items() if is_asked):
        for name in options.type:
            if name != "sft" and key not in LOSSES[name].uses:
                why = f"is not defined for loss.type={name}"
                fix = f"Leave it at its default, or use {_those_with(key)}."
                yield Problem(f"loss.{key}", why, fix, getattr(options, key))
    if settings["f_divergence"] and settings["reduction"]:
        why = f"is one of whole completions, which loss.reduction={options.reduction} divides"
        yield Problem("loss.f_divergence", why, "Set loss.reduction=sum.", options.f_divergence)


def _unread(options: LossOptions) -> Iterator[Problem]:
    """Settings that would be accepted and then change nothing."""
    for name in options.type:
        read = name == "sft" or "label_smoothing" in LOSSES[name].uses
        if options.label_smoothing > 0 and not read:
            fix = f"Set it to 0, or use {_those_with('label_smoothing')}."
            why = f"is not read by loss.type={name}"
            yield Problem("loss.label_smoothing", why, fix, options.label_smoothing)
    defaults = LossOptions()
    for key in ("discopop_tau", "simpo_gamma", "cpo_alpha"):
        value = getattr(options, key)
        if value != getattr(defaults, key) and not any(key in LOSSES[n].uses for n in options.type):
            fix = f"Leave it at {getattr(defaults, key)}, or use {_those_with(key)}."
            yield Problem(f"loss.{key}", f"is not read by {_named(options)}", fix, value)
    if options.f_alpha != defaults.f_alpha and options.f_divergence != "alpha_divergence":
        why = f"is not read by loss.f_divergence={options.f_divergence}"
        fix = f"Leave it at {defaults.f_alpha}, or set loss.f_divergence=alpha_divergence."
        yield Problem("loss.f_alpha", why, fix, options.f_alpha)
    if tuple(options.type) == ("sft",):
        for key in ("label_smoothing", "f_divergence", "ld_alpha", "wpo", "reduction", "rpo_alpha"):
            if getattr(options, key) != getattr(defaults, key):
                fix = f"Leave it at {getattr(defaults, key)}, or add a preference loss."
                why = "is not read by loss.type=sft alone"
                yield Problem(f"loss.{key}", why, fix, getattr(options, key))


def _named(options: LossOptions) -> str:
    return f"loss.type={options.type[0] if len(options.type) == 1 else list(options.type)}"


def _those_with(key: str) -> str:
    return ", ".join(name for name, loss in LOSSES.items() if key in loss.uses)
