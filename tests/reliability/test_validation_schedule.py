"""Validations fall between optimizer steps, at the steps that were asked for."""

from __future__ import annotations

from typing import Any

import pytest

from minimind_dpo.training.callbacks.validation_schedule import crosses
from minimind_dpo.training.option_values import seconds

# 29 pairs, 2 a micro-batch, 3 micro-batches a step: 15 micro-batches, 5 steps an epoch, 3 epochs.
ASKED: dict[str, tuple[Any, list[int]]] = {
    "a number counts steps of the run": (2, [2, 4, 6, 8, 10, 12, 14]),
    "also beyond an epoch": (7, [7, 14]),
    # 0.5 x 5 steps = 2.5: the first step after each half.
    "a share counts within the epoch": (0.5, [3, 5, 8, 10, 13, 15]),
    "never more often than steps": (0.01, list(range(1, 16))),
    "a time": ("00:00:00:00", list(range(1, 16))),
    "a long time": ({"hours": 1}, []),
}


@pytest.mark.parametrize("case", ASKED)
def test_validations_are_where_they_are_asked_for(toy: Any, curves_of: Any, case: str) -> None:
    every, expected = ASKED[case]
    toy.trainer = {"val_check_interval": every}
    curves = curves_of()
    toy.fit("run", curves)
    assert [step for step, name in curves.steps if name == "val/loss"] == expected


def test_only_every_nth_epoch_validates(toy: Any, curves_of: Any) -> None:
    toy.trainer = {"val_check_interval": 0.5, "check_val_every_n_epoch": 2}
    curves = curves_of()
    toy.fit("run", curves)
    assert [step for step, name in curves.steps if name == "val/loss"] == [8, 10]


def test_shares_are_exact_in_spite_of_floats() -> None:
    assert 0.07 * 100 > 7
    assert [step for step in range(1, 101) if crosses(step, 0.07 * 100)] == list(range(7, 101, 7))
    # A quarter of 94 steps is 23.5.
    assert [step for step in range(1, 95) if crosses(step, 23.5)] == [24, 47, 71, 94]


def test_times_are_read_in_both_forms() -> None:
    assert seconds("01:02:03:04") == 86400 + 2 * 3600 + 3 * 60 + 4
    assert seconds({"minutes": 1.5, "hours": 1}) == 3690
