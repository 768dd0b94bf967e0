"""The recipes of CONTRIBUTING.md work as they are written."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from models.conftest import v2_state

from minimind_dpo import load_model, preference_loss
from minimind_dpo.models.export import save_native
from minimind_dpo.models.minimind import generations
from minimind_dpo.objective import options
from minimind_dpo.objective.losses import pairwise, registry
from minimind_dpo.objective.losses.terms import PairTerms
from minimind_dpo.options.limits import limit_problems
from tools.same_numbers import differences

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(heading: str) -> list[str]:
    """Code of a section, block by block, without the line that names its file."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.findall(r"^( *)```(?:python|yaml)\n(.*?)^ *```$", section, flags=re.M | re.S)
    named = [textwrap.dedent(code).split("\n", 1) for _, code in found]
    for first, _ in named:
        assert (ROOT / first.removeprefix("# ").split(",")[0]).is_file(), first
    return [code for _, code in named]


def defined(code: str, module: Any) -> Any:
    """What a block defines, among the names of a module."""
    names = dict(vars(module))
    exec(code, names)
    return next(value for name, value in names.items() if value is not vars(module).get(name))


def test_a_loss_takes_a_function_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    function, row = blocks("Add a loss")
    monkeypatch.setattr(pairwise, "exponential", defined(function, pairwise), raising=False)
    for name, loss in eval("{" + row + "}", vars(registry)).items():
        monkeypatch.setitem(registry.LOSSES, name, loss)
    # h = 0.5 ((-2 + 3) - (-5 + 4)) = 1
    sides = [torch.tensor([value], dtype=torch.float64) for value in (-2.0, -5.0, -3.0, -4.0)]
    losses, *_ = preference_loss(*sides, type="exponential", beta=0.5)
    assert losses.item() == pytest.approx(0.36787944)
    with pytest.raises(ValueError, match=r"loss\.label_smoothing"):
        preference_loss(*sides, type="exponential", label_smoothing=0.6)


def test_a_key_takes_a_field_a_line_and_its_use() -> None:
    field, line, function = blocks("Add a key")
    code = "@dataclass\nclass Extended(LossOptions):\n" + textwrap.indent(field, "    ")
    names = dict(vars(options))
    exec(code, names)
    extended = names["Extended"]
    default = {f.name: f.default for f in dataclasses.fields(extended)}["exponent"]
    assert yaml.safe_load(line) == {"exponent": default}
    comment, key = line.splitlines()
    assert comment.startswith("# ")
    assert key.startswith("exponent:")
    (problem,) = limit_problems(extended(exponent=0.0), "loss.")
    assert "loss.exponent" in str(problem)
    assert "must be above 0" in str(problem)
    sides = [torch.tensor([value], dtype=torch.float64) for value in (-2.0, -5.0, -3.0, -4.0)]
    terms = PairTerms(*sides, chosen_sum=sides[0])
    # h = 1 as above; exp(-2)
    losses = defined(function, pairwise)(terms, extended(beta=0.5, exponent=2.0))
    assert losses.item() == pytest.approx(0.13533528)


def test_a_generation_takes_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = blocks("Add a model generation")
    names = {**vars(generations), "replace": dataclasses.replace}
    (generation,) = eval(f"({row})", names)
    monkeypatch.setitem(generations.GENERATIONS, generation.name, generation)
    state = v2_state()
    state["model.tokens.weight"] = state.pop("model.embed_tokens.weight")
    path = tmp_path / "full_sft_16.pth"
    torch.save(state, path)
    loaded = load_model(path, tokenizer=False, config={"num_attention_heads": 4})
    assert loaded.describe().startswith("MiniMind 4 (v4): LlamaForCausalLM")
    again = torch.load(
        save_native(loaded.model, loaded.dialect, tmp_path / "again.pth"), weights_only=True
    )
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key].float(), state[key].half().float()) for key in state)


def test_same_numbers_tells_a_number_that_differs_and_none_that_a_clock_gave(
    tmp_path: Path,
) -> None:
    before = {"val": {"loss": 0.5}, "steps": 2, "wall_seconds": 1.0, "bad": math.nan}
    after = {**before, "val": {"loss": 0.25}, "wall_seconds": 2.0, "more": [1]}
    for name, content in (("a", before), ("b", after)):
        (tmp_path / name).write_text(json.dumps(content))
    assert differences(tmp_path / "a", tmp_path / "a") == []
    found = differences(tmp_path / "a", tmp_path / "b")
    assert found == ["val.loss: 0.5 -> 0.25", "more.0: None -> 1"]
