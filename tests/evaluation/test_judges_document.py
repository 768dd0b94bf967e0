"""What docs/verdict.md and its Chinese page show is what judges read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from minimind_dpo.evaluation.judges.endpoint import read_request
from minimind_dpo.evaluation.judges.python import PythonJudge
from minimind_dpo.evaluation.judges.rules import KINDS, read_rules
from minimind_dpo.evaluation.options import JUDGES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(params=["verdict.md", "verdict_zh.md"])
def text(request: pytest.FixtureRequest) -> str:
    return (DOCS / request.param).read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)


def test_every_judge_is_in_the_table(text: str) -> None:
    row = r"^\| `(\w+)`(?: \(default\)|（默认）)? \| [^|]* \| [^|]* \|$"
    assert set(re.findall(row, text, re.M)) == {*JUDGES, "none"}


def test_both_pages_show_the_same_commands() -> None:
    pages = [(DOCS / name).read_text(encoding="utf-8") for name in ("verdict.md", "verdict_zh.md")]
    for kind in ("sh", "text"):
        assert blocks(pages[0], kind) == blocks(pages[1], kind)
    inline = [set(re.findall(r"`[a-z_.]+=[^`]*`", page)) for page in pages]
    assert inline[0] == inline[1]


def test_the_rules_and_the_request_that_are_shown_are_read(text: str, tmp_path: Path) -> None:
    rules, request = blocks(text, "yaml")
    file = tmp_path / "shown.yaml"
    file.write_text(rules, encoding="utf-8")
    assert len(read_rules(str(file))) == len(KINDS)
    assert all(f"rule: {kind}" in rules for kind in KINDS)
    file.write_text(request, encoding="utf-8")
    assert set(read_request(str(file))) == {"messages", "temperature", "max_tokens"}


def test_the_functions_that_are_shown_are_a_score_and_a_comparison(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown_taste.py").write_text(blocks(text, "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not PythonJudge("shown_taste:score")._compares
    assert PythonJudge("shown_taste:compare")._compares
