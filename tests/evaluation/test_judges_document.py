"""What docs/verdict.md shows is what judges read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minimind_dpo.evaluation.judges.endpoint import read_request
from minimind_dpo.evaluation.judges.python import PythonJudge
from minimind_dpo.evaluation.judges.rules import KINDS, read_rules
from minimind_dpo.evaluation.options import JUDGES

TEXT = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S)


def test_every_judge_is_in_the_table() -> None:
    assert set(re.findall(r"^\| `(\w+)`(?: \(default\))? \| [^|]* \| [^|]* \|$", TEXT, re.M)) == {
        *JUDGES,
        "none",
    }


def test_the_rules_and_the_request_that_are_shown_are_read(tmp_path: Path) -> None:
    rules, request = blocks("yaml")
    file = tmp_path / "shown.yaml"
    file.write_text(rules, encoding="utf-8")
    assert len(read_rules(str(file))) == len(KINDS)
    assert all(f"rule: {kind}" in rules for kind in KINDS)
    file.write_text(request, encoding="utf-8")
    assert set(read_request(str(file))) == {"messages", "temperature", "max_tokens"}


def test_the_functions_that_are_shown_are_a_score_and_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown_taste.py").write_text(blocks("python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not PythonJudge("shown_taste:score")._compares
    assert PythonJudge("shown_taste:compare")._compares
