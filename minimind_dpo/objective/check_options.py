"""Refuse loss options that have no meaning, before anything is loaded, all at once.

Two grades: values for which no formula exists (`value_problems`), and settings that the chosen
losses would not read (`problems` adds those), which a user deserves to hear of as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from minimind_dpo.objective.losses.divergences import DIVERGENCES
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.options import REDUCTIONS, LossOptions


def problems(options: LossOptions) -> list[str]:
    """Everything wrong with `options`: the config key, what is wrong, what to do. Never raises."""
    found = value_problems(options)
    return found if found else list(_unread(options))


def value_problems(options: LossOptions) -> list[str]:
    """Values out of range, unknown names, and combinations with no formula. Never raises."""
    found = [*_names(options), *_weights(options), *_numbers(options)]
    return found if found else list(_combinations(options))


def needs_reference(options: LossOptions) -> bool:
    """Whether any of the losses reads the reference. Types must be known ones."""
    return any(LOSSES[name].reference for name in options.type)


def supports_margins(options: LossOptions) -> bool:
    """Whether a margin per pair has a meaning: every preference loss must have one."""
    preferences = [name for name in options.type if name != "sft"]
    return bool(preferences) and all("margin" in LOSSES[name].uses for name in preferences)


def padded_mean_warning(beta: float, padded_positions: int) -> str:
    """What `padded_mean` does to beta, for the caller to log.

    Args:
        beta: `loss.beta`.
        padded_positions: Label positions of a padded row, max_length - 1.
    """
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


def _names(options: LossOptions) -> Iterator[str]:
    if not isinstance(options.type, (tuple, list)) or not options.type:
        yield f"loss.type={options.type!r}: give one or more names, as a list; e.g. [sigmoid]"
        return
    for name in options.type:
        if not isinstance(name, str) or name not in LOSSES:
            yield f"loss.type={name!r} is not a loss: use one of {', '.join(LOSSES)}"
    if len(set(map(str, options.type))) < len(options.type):
        yield f"loss.type={list(options.type)} names a loss twice: add their loss.weights instead"
    for key, value, known in (
        ("f_divergence", options.f_divergence, DIVERGENCES),
        ("reduction", options.reduction, REDUCTIONS),
    ):
        if not isinstance(value, str) or value not in known:
            yield f"loss.{key}={value!r} is unknown: use one of {', '.join(known)}"


def _weights(options: LossOptions) -> Iterator[str]:
    if options.weights is None or not isinstance(options.type, (tuple, list)):
        return
    if not isinstance(options.weights, (tuple, list)):
        yield f"loss.weights={options.weights!r}: give a list with one number per loss.type"
        return
    if len(options.weights) != len(options.type):
        yield (
            f"loss.weights has {len(options.weights)} values for {len(options.type)} of "
            "loss.type: give one each"
        )
    for weight in options.weights:
        if not _number(weight) or weight < 0:
            yield f"loss.weights holds {weight!r}: each must be a finite number of at least 0"
    if all(weight == 0 for weight in options.weights):
        yield "loss.weights are all 0, so nothing would be trained: give a positive one"


_RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("beta", lambda v: v > 0, "must be above 0, since it scales every reward; 0.1 is usual"),
    (
        "label_smoothing",
        lambda v: 0 <= v < 0.5,
        "must be at least 0 and below 0.5: with half of the labels wrong there is nothing to learn",
    ),
    ("f_alpha", lambda v: True, "must be a finite number"),
    ("discopop_tau", lambda v: v > 0, "must be above 0; 0.05 is the paper's"),
    ("simpo_gamma", lambda v: v >= 0, "must be at least 0, a margin in nats of reward"),
    ("cpo_alpha", lambda v: v >= 0, "must be at least 0"),
    ("rpo_alpha", lambda v: v >= 0, "must be at least 0; 0 adds no likelihood term"),
)


def _numbers(options: LossOptions) -> Iterator[str]:
    for key, fits, advice in _RANGES:
        value = getattr(options, key)
        if not _number(value) or not fits(value):
            yield f"loss.{key}={value!r} {advice}"
    alpha = options.ld_alpha
    if alpha is not None and not (_number(alpha) and 0 <= alpha <= 1):
        yield f"loss.ld_alpha={alpha!r} must be between 0 and 1, or null for none"
    if not isinstance(options.wpo, bool):
        yield f"loss.wpo={options.wpo!r} must be true or false"


def _combinations(options: LossOptions) -> Iterator[str]:
    if "exo_pair" in options.type and options.label_smoothing == 0:
        yield (
            "loss.label_smoothing=0 with loss.type=exo_pair: its target would give rejected a "
            "probability of 0, an infinite divergence; set loss.label_smoothing=0.001"
        )
    asked = {
        "f_divergence": options.f_divergence != "reverse_kl",
        "reduction": options.reduction != "sum",
        "ld_alpha": options.ld_alpha is not None,
        "wpo": options.wpo,
        "rpo_alpha": options.rpo_alpha != 0,
    }
    for key in (key for key, is_asked in asked.items() if is_asked):
        for name in options.type:
            if name != "sft" and key not in LOSSES[name].uses:
                yield (
                    f"loss.{key}={getattr(options, key)} is not defined for loss.type={name}: "
                    f"leave loss.{key} at its default, or use {_those_with(key)}"
                )
    if asked["f_divergence"] and asked["reduction"]:
        yield (
            f"loss.f_divergence={options.f_divergence} is a divergence between whole completions, "
            f"which loss.reduction={options.reduction} divides: set loss.reduction=sum"
        )


def _unread(options: LossOptions) -> Iterator[str]:
    """Settings that would be accepted and then change nothing."""
    for name in options.type:
        uses = LOSSES[name].uses
        if options.label_smoothing > 0 and name != "sft" and "label_smoothing" not in uses:
            yield (
                f"loss.label_smoothing={options.label_smoothing} is not read by loss.type={name}: "
                f"set it to 0, or use {_those_with('label_smoothing')}"
            )
    if tuple(options.type) == ("sft",):
        defaults = LossOptions()
        for key in ("label_smoothing", "f_divergence", "ld_alpha", "wpo", "reduction", "rpo_alpha"):
            if getattr(options, key) != getattr(defaults, key):
                yield (
                    f"loss.{key}={getattr(options, key)} is not read by loss.type=sft alone: "
                    f"leave it at {getattr(defaults, key)}, or add a preference loss"
                )


def _those_with(key: str) -> str:
    return ", ".join(name for name, loss in LOSSES.items() if key in loss.uses)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
