"""The check of a graphics card, run on a CPU: its rows are sound, and what is not sound is told."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from minimind_dpo import check_gpu
from minimind_dpo.training import device_check

SOUND = device_check.Row("v3", "32-true", "ok", math.log(2), 0.0, "none", 12.5)


def test_a_sound_device_gives_a_row_for_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # Small, since bfloat16 takes seconds a step on a CPU that has no instructions for it.
    monkeypatch.setattr(device_check, "PAIRS", 2)
    monkeypatch.setitem(device_check.SIZE, "num_hidden_layers", 1)
    rows = list(device_check.check_device(torch.device("cpu"), ["v3"]))
    assert [row.precision for row in rows] == ["32-true", "bf16-mixed"]
    assert all(row.sound for row in rows)
    assert all(row.loss == pytest.approx(math.log(2), abs=1e-6) for row in rows)
    assert rows[0].noise == 0.0
    assert 0.0 < rows[1].noise < 1.0


@pytest.mark.parametrize(
    "fault", [{"loss": 0.70}, {"noise": 5.0}, {"layout": "differs"}, {"waits": "aten::item"}]
)
def test_a_row_that_breaks_one_promise_is_not_sound(fault: dict[str, object]) -> None:
    assert SOUND.sound
    assert not dataclasses.replace(SOUND, **fault).sound  # type: ignore[arg-type]


def test_the_table_can_be_pasted() -> None:
    head, rule, first = check_gpu.table([SOUND]).splitlines()[:3]
    assert head.count("|") == rule.count("|") == first.count("|") == 8
    assert first.startswith("| v3 | 32-true | ok | 0.693147 |")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_gpu.main([]) == check_gpu.WRONG_INPUT
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert check_gpu.main(["--device", "cpu", "--generations", "v9"]) == check_gpu.WRONG_INPUT
    assert "there are v_learn, v1" in capsys.readouterr().err
