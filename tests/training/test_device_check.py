"""The check of a graphics card, run on a CPU: its rows are sound, and what is not sound is told."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from minimind_dpo import check_gpu
from minimind_dpo.training import device_check


@pytest.fixture(scope="module")
def rows() -> list[device_check.Row]:
    return list(device_check.check_device(torch.device("cpu"), ["v3"]))


def test_a_sound_device_gives_a_row_for_each_precision(rows: list[device_check.Row]) -> None:
    assert [row.precision for row in rows] == ["32-true", "bf16-mixed"]
    assert all(row.sound for row in rows)
    assert all(row.loss == pytest.approx(math.log(2), abs=1e-6) for row in rows)
    assert rows[0].noise == 0.0
    assert 0.0 < rows[1].noise < 1.0


@pytest.mark.parametrize(
    "fault", [{"loss": 0.70}, {"noise": 5.0}, {"layout": "differs"}, {"waits": "aten::item"}]
)
def test_a_row_that_breaks_one_promise_is_not_sound(
    fault: dict[str, object], rows: list[device_check.Row]
) -> None:
    assert not dataclasses.replace(rows[0], **fault).sound  # type: ignore[arg-type]


def test_the_table_can_be_pasted(rows: list[device_check.Row]) -> None:
    head, rule, first, *_ = check_gpu.table(rows).splitlines()
    assert head.count("|") == rule.count("|") == first.count("|") == 8
    assert first.startswith("| v3 | 32-true | ok | 0.693147 |")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_device_that_is_not_there_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_gpu.main([]) == check_gpu.WRONG_INPUT
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert check_gpu.main(["--device", "cpu", "--generations", "v9"]) == check_gpu.WRONG_INPUT
    assert "there are v_learn, v1" in capsys.readouterr().err
