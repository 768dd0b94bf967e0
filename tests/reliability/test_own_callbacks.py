"""Callbacks of the user's own act where validations are, and go on exactly where a run goes on."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from minimind_dpo.training.resume.checkpoint_io import read_checkpoint, step_files, step_of


def stopping(monitor: str) -> EarlyStopping:
    # With `max` a loss that falls is no improvement: after the first check each one counts.
    return EarlyStopping(monitor, mode="max", patience=4)


@pytest.mark.parametrize("monitor", ["val/loss", "train/loss"])
def test_early_stopping_counts_validations_and_goes_on_counting(
    toy: Any, curves_of: Any, monitor: str
) -> None:
    # 5 steps an epoch; a validation every 2 steps of the run.
    toy.trainer = {"val_check_interval": 2, "max_epochs": 9, "log_every_n_steps": 3}
    toy.extra, whole = [stopping(monitor)], curves_of()
    _, trainer = toy.fit("whole", whole)
    end = trainer.global_step
    checks = [step for step, name in whole.steps if name == "val/loss"]
    # The first check is an improvement on nothing; the last one ended the run. A loss of a toy
    # does not fall at each check, so that it may be later than the fifth.
    assert checks == list(range(2, end + 1, 2))
    assert 10 <= end < 45
    for state in step_files(toy.folder / "whole" / "checkpoints")[::3]:
        toy.extra, rest = [stopping(monitor)], curves_of()
        _, again = toy.fit(f"from-{step_of(state)}", rest, resume=state)
        assert again.global_step == end, state.name
        assert {key: whole.steps[key] for key in rest.steps} == rest.steps


def test_early_stopping_waits_for_the_end_of_an_epoch_that_has_one_validation(toy: Any) -> None:
    toy.trainer = {"val_check_interval": 1.0, "max_epochs": 9}
    toy.extra = [stopping("val/loss")]
    _, trainer = toy.fit("run")
    assert trainer.global_step % 5 == 0
    assert 25 <= trainer.global_step < 45


def test_a_best_state_by_a_train_curve_is_of_the_step_that_its_name_says(toy: Any) -> None:
    best = ModelCheckpoint(
        toy.folder / "mine", "{step}", monitor="train/loss", every_n_train_steps=3, save_top_k=-1
    )
    toy.trainer = {"val_check_interval": 2, "max_epochs": 2, "log_every_n_steps": 3}
    toy.extra = [best]
    toy.fit("run")
    states = {path.name: read_checkpoint(path) for path in (toy.folder / "mine").iterdir()}
    assert {"step=3.ckpt", "step=6.ckpt", "step=9.ckpt"} <= states.keys()
    assert {name: f"step={state['global_step']}.ckpt" for name, state in states.items()} == {
        name: name for name in states
    }
