"""The examples and the notebook run, and print what their text says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_objective_alone_prints_the_numbers_of_its_comments(
    capsys: pytest.CaptureFixture[str],
) -> None:
    runpy.run_path(str(ROOT / "examples/objective_alone.py"))
    rows = [line.replace(",", "").split() for line in capsys.readouterr().out.splitlines()]
    numbers = [
        [float(word.strip("[]")) for word in row if word[-1] in "0123456789]"] for row in rows
    ]
    dpo, rewards, gradient, ipo, simpo, mixed = numbers
    assert dpo == pytest.approx([0.6210, 0.6931], abs=1e-4)
    assert rewards == pytest.approx([0.15, 0.0])
    assert gradient == pytest.approx([-0.0463 / 2, -0.025, 0.0463 / 2, 0.025], abs=1e-4)
    # ((2/5 - 0.5/4) - 1/0.2)^2 and (0 - 5)^2
    assert ipo == pytest.approx([22.3256, 25.0], abs=1e-3)
    # -log sigmoid(2 (-10/5 + 11/4) - 0.5) and -log sigmoid(-0.5)
    assert simpo == pytest.approx([0.3133, 0.9741], abs=1e-4)
    # Likelihood is averaged over the batch's tokens: 5.5 a pair.
    assert mixed == pytest.approx([dpo[0] + 0.2 * 10 / 5.5, dpo[1] + 0.2 * 12 / 5.5], abs=1e-4)


def test_lightning_s_own_trainer_trains_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples/own_trainer.py"))["main"](2)
    out = capsys.readouterr().out
    assert "step 0: loss=0.6931 accuracy=0.5000 margin=0.0000" in out
    assert "step 2: loss=0.6832 accuracy=0.9950" in out
    assert (tmp_path / "outputs/own_trainer/export/config.json").is_file()


@pytest.mark.filterwarnings("ignore:You called `self.log.*no logger configured")
def test_every_cell_of_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    notebook = json.loads((ROOT / "notebooks/dpo_in_five_minutes.ipynb").read_text("utf-8"))
    code = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    kept = ["".join(o["text"]) for c in notebook["cells"] for o in c.get("outputs", [])]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, source in enumerate(code):
        short = source.replace("STEPS = 94", "STEPS = 2")
        exec(compile(short, f"cell {number}", "exec"), names)
        # What is printed before training does not depend on its length.
        if "trainer.fit" not in "".join(code[: number + 1]):
            assert capsys.readouterr().out == kept[number]
    assert "held-out rewards/accuracies" in capsys.readouterr().out
    assert (tmp_path / "outputs/notebook/export/config.json").is_file()
