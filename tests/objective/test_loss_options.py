"""Options without meaning are refused, all at once, by config key."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from minimind_dpo.objective.check_options import (
    needs_reference,
    padded_mean_warning,
    problems,
    supports_margins,
)
from minimind_dpo.objective.losses.registry import LOSSES
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.objective.preference_loss import preference_loss

NAN = float("nan")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"type": ("robust",), "label_smoothing": 0.5}, "loss.label_smoothing=0.5"),
        ({"type": ("exo_pair",)}, "loss.label_smoothing=0"),
        ({"type": ("ipo",), "beta": 0.0}, "loss.beta=0.0"),
        ({"beta": NAN}, "loss.beta=nan"),
        ({"beta": "big"}, "loss.beta=big"),
        ({"type": ("bco_pair",), "f_divergence": "forward_kl"}, "loss.f_divergence=forward_kl"),
        ({"type": ("sft",), "f_divergence": "forward_kl"}, "loss.f_divergence=forward_kl"),
        ({"type": ("dpp",)}, "loss.type=dpp"),
        ({"type": ()}, "loss.type=[]"),
        ({"type": ("sigmoid", "sigmoid")}, "twice"),
        ({"f_divergence": "kl"}, "loss.f_divergence=kl"),
        ({"reduction": "max"}, "loss.reduction=max"),
        ({"weights": (NAN,)}, "loss.weights=[nan]"),
        ({"weights": (-1.0,)}, "loss.weights=[-1.0]"),
        ({"weights": (0.0,)}, "are all 0"),
        ({"weights": (1.0, 2.0)}, "has 2 values for 1"),
        ({"type": ("ipo",), "reduction": "mean"}, "loss.reduction=mean"),
        ({"reduction": "mean", "f_divergence": "forward_kl"}, "loss.f_divergence=forward_kl"),
        ({"type": ("aot",), "wpo": True}, "loss.wpo=true"),
        ({"wpo": 1}, "loss.wpo=1"),
        ({"type": ("simpo",), "ld_alpha": 0.5}, "loss.ld_alpha=0.5"),
        ({"ld_alpha": 1.5}, "loss.ld_alpha=1.5"),
        ({"type": ("orpo",), "rpo_alpha": 1.0}, "loss.rpo_alpha=1.0"),
        ({"type": ("hinge",), "label_smoothing": 0.1}, "loss.label_smoothing=0.1"),
        ({"type": ("discopop",), "discopop_tau": 0}, "loss.discopop_tau=0"),
        ({"discopop_tau": 0.1}, "loss.discopop_tau=0.1"),
        ({"simpo_gamma": 1.0}, "loss.simpo_gamma=1.0"),
        ({"type": ("simpo", "sft"), "cpo_alpha": 0.5}, "loss.cpo_alpha=0.5"),
        ({"f_alpha": 0.3}, "loss.f_alpha=0.3"),
        ({"f_divergence": "js_divergence", "f_alpha": 0.3}, "loss.f_alpha=0.3"),
    ],
)
def test_a_setting_without_meaning_is_refused_by_its_key(settings: dict[str, Any], key: str):
    found = problems(LossOptions(**settings))
    assert len(found) == 1
    assert key in str(found[0])


def test_problems_are_told_all_at_once():
    options = LossOptions(type=("dpp",), beta=-1, label_smoothing=2, weights=(1, 2), ld_alpha=-1)
    keys = ("loss.type", "loss.weights", "loss.beta", "loss.label_smoothing", "loss.ld_alpha")
    found = "\n".join(map(str, problems(options)))
    assert all(key in found for key in keys)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_accepted_with_its_defaults(name):
    smoothing = 0.001 if name == "exo_pair" else 0.0
    assert problems(LossOptions(type=(name,), label_smoothing=smoothing)) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"type": ("discopop",), "discopop_tau": 0.1},
        {"type": ("simpo",), "simpo_gamma": 1.0},
        {"type": ("simpo", "cpo"), "cpo_alpha": 0.5, "simpo_gamma": 1.0},
        {"f_divergence": "alpha_divergence", "f_alpha": 0.3},
    ],
)
def test_a_coefficient_is_accepted_where_a_loss_reads_it(settings: dict[str, Any]):
    assert problems(LossOptions(**settings)) == []


def test_whatever_the_values_are_problems_does_not_raise():
    for field in fields(LossOptions):
        for value in (None, "x", NAN, -1, [], (), ("x",), [1], {}, True, object()):
            assert isinstance(problems(replace(LossOptions(), **{field.name: value})), list)


def test_reference_is_needed_where_a_loss_reads_it():
    free = {name for name in LOSSES if not needs_reference(LossOptions(type=(name,)))}
    assert free == {"simpo", "orpo", "cpo", "sft"}
    assert needs_reference(LossOptions(type=("sft", "sigmoid")))


def test_margins_mean_something_only_where_every_preference_loss_is_a_gap():
    assert supports_margins(LossOptions(type=("sigmoid", "sft")))
    assert not supports_margins(LossOptions(type=("sigmoid", "bco_pair")))
    assert not supports_margins(LossOptions(type=("sft",)))


def test_padded_mean_warning_tells_the_effective_beta_and_the_stuck_loss():
    """beta 0.1 over 1,023 positions is 9.78e-05; a gap of 50 nats gives 0.6907, not 0.0067."""
    warning = padded_mean_warning(0.1, 1023)
    assert all(number in warning for number in ("9.78e-05", "0.6907", "0.0067", "1023"))


@pytest.mark.parametrize("option", [{"reduction": "mean"}, {"ld_alpha": 0.5}, {"wpo": True}])
def test_options_of_tokens_are_refused_where_there_are_sums_alone(option) -> None:
    with pytest.raises(TypeError, match=f"loss.{next(iter(option))} is of tokens"):
        preference_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(2), **option)
