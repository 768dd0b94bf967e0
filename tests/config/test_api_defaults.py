"""What Python gets without asking is what the command line gets without asking."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from minimind_dpo.config.compose import compose
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.models.load import load_model
from minimind_dpo.options.limits import value_at
from minimind_dpo.training.callbacks.samples import SampledAnswers
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.nan_guard import StepGuard
from minimind_dpo.training.reference import PrecomputedReference

OTHERWISE = {
    "model.tokenizer": None,
    "model.dtype": "torch.float32",
}
"""The same said in another type."""

ARGUMENTS: dict[Callable[..., Any], tuple[str, ...]] = {
    PreferenceDataModule: ("",),
    StepGuard: ("guard.",),
    load_model: ("model.",),
    SampledAnswers: ("callbacks.samples.",),
    PrecomputedReference: ("reference.",),
}


@pytest.mark.parametrize("call", ARGUMENTS, ids=lambda call: call.__name__)
def test_arguments_have_the_defaults_of_their_keys(call: Callable[..., Any]) -> None:
    config, compared = compose(), 0
    for name, parameter in inspect.signature(call).parameters.items():
        for group in ARGUMENTS[call]:
            key = group + name
            try:
                expected = value_at(config, key)
            except AttributeError:
                continue
            if parameter.default is not inspect.Parameter.empty and name != "config":
                default = parameter.default
                default = str(default) if name == "dtype" else default
                assert default == OTHERWISE.get(key, expected), key
                compared += 1
    assert compared


def test_the_module_has_the_optimizer_schedule_and_loss_of_the_command_line() -> None:
    from training_support import tiny_model

    config, module = compose(), DPOModule(tiny_model(0), tiny_model(1))
    assert module.optimizer_options == config.optim
    assert module.schedule_options == config.schedule
    assert module.loss == config.loss
    assert module.guard.max_bad_steps == config.guard.max_bad_steps
