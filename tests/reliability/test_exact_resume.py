"""From every point where a state can be saved, a resumed run ends bitwise as if nothing was."""

from __future__ import annotations

import signal
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from minimind_dpo.training.resume.checkpoint_io import step_files, step_of
from minimind_dpo.training.signals import Stopped


def same(got: Any, expected: Any, where: str = "") -> None:
    """Bitwise, through dicts, lists and tensors."""
    assert type(got) is type(expected), where
    if isinstance(expected, Tensor):
        assert got.dtype == expected.dtype, where
        assert torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            same(got[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected), where
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            same(a, b, f"{where}[{i}]")
    else:
        assert got == expected, where


LENGTHS: dict[str, dict[str, Any]] = {
    # 29 pairs, 2 a micro-batch, 3 micro-batches a step: 15 micro-batches, 5 steps an epoch, the
    # last one with 5 pairs.
    "validating at every step": {"val_check_interval": 1},
    "validating at some steps": {"val_check_interval": 2},
    "validating in shares of an epoch": {"val_check_interval": 0.4},
    "validating at the edge": {"val_check_interval": 1.0},
    "never validating": {"limit_val_batches": 0},
    "ended by steps": {"max_epochs": -1, "max_steps": 13, "val_check_interval": 2},
    "ended by steps, no validation": {"max_epochs": 9, "max_steps": 12, "limit_val_batches": 0},
    "a cut epoch": {"limit_train_batches": 8, "val_check_interval": 1.0},
    "points of several steps": {"log_every_n_steps": 7, "val_check_interval": 2},
}


@pytest.mark.parametrize("case", LENGTHS)
def test_every_saved_state_leads_to_the_same_end(toy: Any, curves_of: Any, case: str) -> None:
    toy.trainer = LENGTHS[case]
    whole = curves_of()
    module, trainer = toy.fit("whole", whole)
    expected = module.state_dict()
    states = step_files(toy.folder / "whole" / "checkpoints")
    assert len(states) == trainer.global_step
    for state in states[::2] if "some" in case else states[::4]:
        rest = curves_of()
        resumed, again = toy.fit(f"from-{step_of(state)}", rest, resume=state)
        same(resumed.state_dict(), expected, state.name)
        same(again.optimizers[0].state_dict(), trainer.optimizers[0].state_dict(), state.name)
        assert again.global_step == trainer.global_step
        # A run that is over by its steps does not enter Lightning's loop again, which counts the
        # epoch that they cut.
        if step_of(state) < trainer.global_step:
            assert again.current_epoch == trainer.current_epoch
        # What was logged up to the state is there already; the rest goes on with the same values.
        step = step_of(state)
        for key, value in whole.steps.items():
            if key[0] > step or (
                key[0] == step and key[1].startswith("val/") and key in rest.steps
            ):
                assert rest.steps[key] == value, (state.name, key)
        assert {key for key in rest.steps if key[0] < step} == set()
        missing = {k for k in whole.steps if k[0] > step} - rest.steps.keys()
        assert missing == set()


@pytest.mark.parametrize("when", ["next step", "end"])
def test_a_stop_after_a_validation_does_not_log_it_again(
    toy: Any, curves_of: Any, when: str
) -> None:
    """States are saved at a signal alone (`save_last=false`)."""
    toy.every, toy.trainer = None, {"max_epochs": 2, "val_check_interval": 2}
    at = 10 if when == "end" else 4
    module, trainer = toy.fit("whole")

    class Stop(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == at:
                newest = trainer.checkpoint_callbacks[-1]
                newest.stop.signum = signal.SIGTERM  # type: ignore[attr-defined]

    toy.extra = [Stop()]
    with pytest.raises(Stopped):
        toy.fit("part")
    toy.extra, rest = [], curves_of()
    (state,) = step_files(toy.folder / "part" / "checkpoints")
    assert step_of(state) == at
    resumed, again = toy.fit("rest", rest, resume=state)
    assert {step for step, name in rest.steps if name == "val/loss"} == set(range(at + 2, 11, 2))
    same(resumed.state_dict(), module.state_dict())
    if when != "end":
        same(again.fit_loop.state_dict(), trainer.fit_loop.state_dict())


def test_random_numbers_matter_in_this_proof(toy: Any) -> None:
    toy.trainer = {"max_epochs": 1}
    module, _ = toy.fit("dropout")
    toy.dropout = 0.0
    without, _ = toy.fit("none")
    weights = module.state_dict()["policy.transformer.wte.weight"]
    assert not torch.equal(weights, without.state_dict()["policy.transformer.wte.weight"])


def test_workers_change_nothing(toy: Any) -> None:
    toy.trainer = {"max_epochs": 2, "val_check_interval": 2}
    expected = toy.fit("none")[0].state_dict()
    toy.loader = {"num_workers": 2}
    same(toy.fit("two")[0].state_dict(), expected)
    state = step_files(toy.folder / "two" / "checkpoints")[6]
    same(toy.fit("rest", resume=state)[0].state_dict(), expected)


def test_a_step_spread_in_another_way_goes_on_at_the_exact_pair(toy: Any, curves_of: Any) -> None:
    # 6 pairs a step: 2 x 3 micro-batches, then 3 x 2, then 6 x 1. Without dropout, whose masks
    # depend on shapes, only the order of additions differs.
    toy.dropout, toy.trainer = 0.0, {"limit_val_batches": 0, "max_epochs": 2}
    whole = curves_of()
    toy.fit("whole", whole)
    states = step_files(toy.folder / "whole" / "checkpoints")
    assert [step_of(path) for path in states] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    for size, accumulate in ((3, 2), (6, 1)):
        toy.loader = {"batch_size": size}
        for state in (states[2], states[5], states[7]):
            rest = curves_of()
            run = f"{size}-{step_of(state)}"
            toy.fit(run, rest, resume=state, accumulate_grad_batches=accumulate)
            losses = {key: value for key, value in rest.steps.items() if key[1] == "train/loss"}
            assert sorted(losses) == [(s, "train/loss") for s in range(step_of(state) + 1, 11)]
            for key, value in losses.items():
                assert value == pytest.approx(whole.steps[key], rel=1e-4), (run, key)
