"""What the module cannot train is refused with what to give it instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from training_support import quiet_trainer, tiny_model

from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.reference import PrecomputedReference


def test_one_object_as_policy_and_reference_is_refused_and_stays_trainable() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"one object.*copy.deepcopy\(policy\)"):
        DPOModule(model, model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("names", [("gpt2",), ("gpt2", None), (None, "gpt2")])
def test_a_name_is_no_model(names: tuple[Any, ...]) -> None:
    models = [name or tiny_model() for name in names[:1]] + list(names[1:])
    with pytest.raises(TypeError, match=r"has to be a model, not str.*load_model\(NAME\).model"):
        DPOModule(*models)


def test_scorers_and_none_are_references() -> None:
    DPOModule(tiny_model(), PrecomputedReference())
    DPOModule(tiny_model(), None)


@pytest.mark.parametrize("call", ["fit", "validate"])
def test_a_batch_of_another_kind_is_told_with_the_one_to_make(call: str) -> None:
    rows = DataLoader([{"input_ids": torch.zeros(3)} for _ in range(2)], batch_size=2)
    module = DPOModule(tiny_model(0), tiny_model(1))
    with pytest.raises(TypeError, match=r"gave dict.*collate_fn=Collator\(\)"):
        getattr(quiet_trainer(), call)(module, rows)
