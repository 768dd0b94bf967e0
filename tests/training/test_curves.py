"""Curves are exact: each pair is in one point, whatever the cadence, and Lightning has them too."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from training_support import loader, made_up_pairs, quiet_trainer, tiny_model

from minimind_dpo.training.module import DPOModule
from minimind_dpo.training.options import OptimizerOptions, ScheduleOptions

AVERAGED = ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logratios/rejected")


def make_module(**options: Any) -> DPOModule:
    return DPOModule(
        tiny_model(0),
        tiny_model(1),
        optimizer=OptimizerOptions(lr=1e-2, fused=False),
        schedule=ScheduleOptions("constant"),
        **options,
    )


def curve(every: int, accumulate: int = 1, module: DPOModule | None = None) -> dict[int, Any]:
    """Train on 27 pairs, 4 a step: six whole steps and one of 3 pairs."""
    trainer = quiet_trainer(log_every_n_steps=every, accumulate_grad_batches=accumulate)
    trainer.fit(module or make_module(), loader(made_up_pairs(27), 4 // accumulate, accumulate))
    return trainer.logger.steps  # type: ignore[union-attr]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_point_is_the_mean_over_all_pairs_since_the_last(accumulate: int) -> None:
    steps, points = curve(1, accumulate), curve(3, accumulate)
    assert sorted(steps) == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(points) == [1, 3, 6, 7]
    pairs = {step: 3 if step == 7 else 4 for step in steps}
    for between in ([1], [2, 3], [4, 5, 6], [7]):
        for name in AVERAGED:
            total = sum(pairs[step] * steps[step][f"train/{name}"] for step in between)
            expected = total / sum(pairs[step] for step in between)
            got = points[between[-1]][f"train/{name}"]
            assert got == pytest.approx(expected, rel=1e-12), (between, name)
        assert points[between[-1]]["train/grad_norm"] == steps[between[-1]]["train/grad_norm"]


class BadAt(DPOModule):
    """Has no finite loss at some steps."""

    bad: frozenset[int] = frozenset()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * math.nan if batch_idx + 1 in self.bad else loss


def test_a_step_that_is_refused_is_not_in_the_mean() -> None:
    module = BadAt(tiny_model(0), tiny_model(1), optimizer=OptimizerOptions(lr=1e-2, fused=False))
    module.bad = frozenset({2})
    points = curve(3, module=module)
    module = BadAt(tiny_model(0), tiny_model(1), optimizer=OptimizerOptions(lr=1e-2, fused=False))
    module.bad = frozenset({2})
    steps = curve(1, module=module)
    assert points[3]["train/loss"] == steps[3]["train/loss"]
    assert points[3]["train/guard/bad_steps"] == 1.0
    assert "train/loss" not in steps[2]


def test_lightning_has_the_newest_point_for_its_own_callbacks_and_its_progress_bar() -> None:
    seen: list[dict[str, Tensor]] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(dict(trainer.callback_metrics))

        def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(dict(trainer.progress_bar_metrics))  # type: ignore[arg-type]

    module = make_module()
    trainer = quiet_trainer(log_every_n_steps=3, callbacks=[Look()])
    trainer.fit(module, loader(made_up_pairs(27), 4))
    points = trainer.logger.steps  # type: ignore[union-attr]
    # A callback of the trainer's comes before the module's own: it sees the step before.
    assert "train/loss" not in seen[0]
    for before, point in ((1, 1), (2, 1), (3, 3), (6, 6)):
        assert float(seen[before]["train/loss"]) == points[point]["train/loss"]
    assert seen[-1]["train/loss"] == points[7]["train/loss"]


def test_validate_returns_the_numbers_and_logs_them_once_at_the_exact_step() -> None:
    module, trainer = make_module(), quiet_trainer()
    (before,) = trainer.validate(module, loader(made_up_pairs(7), 3), verbose=False)
    assert before["val/loss"] == module.last_val_metrics["loss"]
    assert before["step"] == 0
    trainer.fit(module, loader(made_up_pairs(8), 4), loader(made_up_pairs(7), 3))
    (after,) = trainer.validate(module, loader(made_up_pairs(7), 3), verbose=False)
    assert after["step"] == 2
    steps = trainer.logger.steps  # type: ignore[union-attr]
    assert {step for step, point in steps.items() if "val/loss" in point} == {0, 2}
    assert steps[2]["val/loss"] == after["val/loss"] == module.last_val_metrics["loss"]
    assert all("epoch" not in point and "step" not in point for point in steps.values())


@pytest.mark.parametrize("monitor", ["train/loss", "val/loss"])
def test_early_stopping_and_checkpoints_watch_either_curve(monitor: str, tmp_path: Any) -> None:
    early = EarlyStopping(monitor, mode="max", patience=2, check_on_train_epoch_end=True)
    best = ModelCheckpoint(
        tmp_path, "{step}", monitor=monitor, save_on_train_epoch_end=True, save_top_k=-1
    )
    module = make_module()
    trainer = quiet_trainer(
        max_epochs=9, log_every_n_steps=2, callbacks=[early, best], enable_checkpointing=True
    )
    trainer.fit(module, loader(made_up_pairs(8), 4), loader(made_up_pairs(7), 7))
    # The loss falls, which `mode=max` takes for two epochs without improvement after the first.
    assert trainer.global_step == 6
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
    assert best.best_model_score is not None
    assert torch.isfinite(best.best_model_score)
