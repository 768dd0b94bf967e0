"""Four optimizer steps of MiniMind's own DPO scripts, repeated by DPOModule on their models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from golden_support import Golden, numbers
from torch import Tensor
from torch.utils.data import DataLoader
from training_support import Memory

from minimind_dpo.batch import PreferenceBatch
from minimind_dpo.models.load import load_model
from minimind_dpo.models.moe_balance import balance_loss, default_aux_coef
from minimind_dpo.objective.options import LossOptions
from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.optim import make_optimizer, schedule_factor
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions
from minimind_dpo.training.reference import OnlineReference

REDUCTIONS = {
    "v_learn_padmean": "padded_mean",
    "upstream_2025_10_maskmean_clamped": "mean",
    "upstream_2026_03_sum": "sum",
}
TRACES = ("v_learn", "v2", "v3", "v3_moe_top1", "v2_moe")


def whole_rectangle(input_ids: Tensor, mask: Tensor) -> PreferenceBatch:
    """The scripts' own batch: they run padding like any other token and mask only the loss."""
    rows, columns = mask.shape
    scored = mask.reshape(-1).nonzero().squeeze(1)
    return PreferenceBatch(
        input_ids=input_ids[:, :-1].reshape(-1),
        position_ids=torch.arange(columns).repeat(rows),
        attention_mask=torch.ones_like(mask),
        predictor_index=scored,
        target_id=input_ids[:, 1:].reshape(-1)[scored],
        sequence_id=scored // columns,
        lengths=mask.sum(1),
        pair_index=torch.arange(rows // 2),
        margins=torch.zeros(rows // 2),
        weights=torch.ones(rows // 2),
        padded_positions=columns,
    )


class AtTheirRates(DPOModule):
    """DPOModule at the learning rates that the script used, step by step."""

    rates: list[float]

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.policy, self.optimizer_options)
        factor = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.rates[min(step, 3)] / self.optimizer_options.lr
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factor, "interval": "step"}}


@pytest.mark.parametrize("dialect", TRACES)
def test_four_steps_give_the_numbers_of_the_script(
    golden: Callable[[str], Golden], dialect: str
) -> None:
    trace = next(t for t in numbers("minimind/dpo_trace") if t["dialect"] == dialect)
    g = golden(dialect)
    policy, reference = (load_model(g.path, False, g.config) for _ in range(2))
    module = AtTheirRates(
        policy.model,
        OnlineReference(reference.model),
        LossOptions(beta=trace["beta"], reduction=REDUCTIONS[trace["loss_rule"]]),
        optimizer=OptimizerOptions(lr=trace["lr_base"], weight_decay=0.01, decay_all=True),
        aux_loss=balance_loss(policy.dialect, policy.model.config),
        aux_coef=default_aux_coef(policy.dialect, policy.model.config),
    )
    module.rates = [step["lr"] for step in trace["steps"]]
    input_ids, mask = torch.tensor(trace["input_ids"]), torch.tensor(trace["mask"])
    memory = Memory()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        gradient_clip_val=1.0,
        logger=memory,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    batches = [whole_rectangle(*batch) for batch in zip(input_ids, mask, strict=True)]
    trainer.fit(module, DataLoader(batches, batch_size=None))

    for number, expected in enumerate(trace["steps"], start=1):
        got = memory.steps[number]
        assert got["train/loss"] == pytest.approx(expected["dpo_loss"], rel=2e-5), number
        norm = expected["grad_norm_before_clip"]
        assert got["train/grad_norm"] == pytest.approx(norm, rel=2e-4), number
        if module.aux_coef:
            aux = got["train/aux_loss"] * module.aux_coef
            assert aux == pytest.approx(expected["aux_loss"], rel=1e-4), number
    logits = policy.model(input_ids=input_ids[0, :, :-1]).logits[:, -1]
    final = torch.tensor(trace["final_logits_last_position_batch0"])
    # Adam divides tiny gradients by their own size, so rounding in the first steps is amplified.
    torch.testing.assert_close(logits, final, atol=3e-3, rtol=1e-3)


def test_the_notebooks_schedule_starts_above_the_base_rate() -> None:
    first = numbers("minimind/dpo_trace")[0]
    factor = schedule_factor(ScheduleOptions("notebook", warmup_ratio=0.0), 4)
    rates = [1e-3 * factor(step) for step in range(4)]
    assert rates == pytest.approx([step["lr"] for step in first["steps"]], rel=1e-9)
