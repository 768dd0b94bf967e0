"""What `auto` stands for on each kind of machine."""

from __future__ import annotations

from typing import Any

import pytest
from composed import composed

from minimind_dpo.config.check import Machine
from minimind_dpo.config.settle import settle

CPU, GPU = Machine(cuda=0, mps=False), Machine(cuda=1, mps=False)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton and a compiler are there."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("overrides", "machine", "precision", "compiles"),
    [
        ([], CPU, "32-true", False),
        ([], GPU, "16-mixed", True),
        (["trainer.accelerator=cpu"], GPU, "32-true", False),
        (["trainer.precision=bf16-mixed"], GPU, "bf16-mixed", True),
        (["model.gradient_checkpointing=true"], GPU, "16-mixed", False),
        (["model.compile=false"], GPU, "16-mixed", False),
        (["model.compile=true"], CPU, "32-true", True),
    ],
)
def test_auto_is_decided_by_the_machine_and_what_is_given_stays(
    overrides: list[str], machine: Machine, precision: str, compiles: bool
) -> None:
    config = composed(["experiment=minimind3", *overrides])
    settled = settle(config, machine)
    assert (settled.trainer.precision, settled.model.compile) == (precision, compiles)
    assert settle(settled, CPU) == settled
    assert config.model.compile in ("auto", True, False)


def test_nothing_compiles_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert settle(composed(["experiment=hf"]), GPU).model.compile is False


def test_what_a_card_or_torch_cannot_do_is_refused(files: list[str], problems: Any) -> None:
    from minimind_dpo.config.check import machine_problems

    config = composed([*files, "trainer.precision=bf16-mixed"])
    old = Machine(cuda=1, mps=False, bfloat16=False)
    (problem,) = machine_problems(config, old, None)
    assert "Use 16-mixed" in str(problem)
    # On CUDA gradients are unscaled before they are clipped, so that auto is fused as well.
    fused = composed([*files, "trainer.precision=16-mixed", "optim.fused=true"])
    assert list(machine_problems(fused, old, None)) == []
    (problem,) = machine_problems(fused, Machine(cuda=0, mps=True), None)
    assert str(problem).startswith("optim.fused=true: goes with trainer.precision=16-mixed on CUDA")
    both = problems([*files, "model.compile=true", "model.gradient_checkpointing=true"])
    assert "compiles nothing" in both["model.compile"]
