"""Every MiniMind generation: ln 2 at step 0, and the same numbers in every layout."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from golden_support import HUB, NATIVE, Golden
from test_layouts import assert_same_gradients, gradients, make_pairs, plain_logps
from training_support import loader, made_up_pairs, quiet_trainer
from transformers import PreTrainedModel

from minimind_dpo.data.batches.layouts import Collator
from minimind_dpo.models.attention.planned import use_planned_attention
from minimind_dpo.models.load import load_model
from minimind_dpo.objective.logps import sequence_logps
from minimind_dpo.training.layout_check import check_layout
from minimind_dpo.training.module import DPOModule

LAYOUTS = ("prefix_shared", "packed", "padded")


def load(golden: Golden) -> PreTrainedModel:
    return load_model(golden.path, False, golden.config).model


@pytest.mark.parametrize("dialect", NATIVE + HUB)
@pytest.mark.parametrize(("precision", "gate"), [("32-true", 1e-6), ("bf16-mixed", 1e-3)])
def test_step_0_loss_is_ln_2_for_every_dialect(
    golden: Callable[[str], Golden], dialect: str, precision: str, gate: float
) -> None:
    policy, reference = load(golden(dialect)), load(golden(dialect))
    for model in (policy, reference):
        use_planned_attention(model, True)
    trainer = quiet_trainer(max_steps=1, precision=precision)
    trainer.fit(DPOModule(policy, reference), loader(made_up_pairs(8), 8))
    loss = trainer.logger.steps[1]["train/loss"]  # type: ignore[union-attr]
    assert loss == pytest.approx(math.log(2), abs=gate)


@pytest.mark.parametrize("dialect", NATIVE + HUB)
def test_every_layout_gives_the_gradients_of_plain_forwards(
    golden: Callable[[str], Golden], dialect: str
) -> None:
    model = load(golden(dialect)).train()
    expected = plain_logps(model, make_pairs())
    expected_gradients = gradients(model, expected)
    for layout in LAYOUTS:
        use_planned_attention(model, layout != "padded")
        check_layout(model, layout)
        got = sequence_logps(model, Collator(layout, max_length=48)(make_pairs()))
        torch.testing.assert_close(got.token_logps, expected, atol=2e-5, rtol=1e-5)
        assert_same_gradients(gradients(model, got.token_logps), expected_gradients, 1e-4)
