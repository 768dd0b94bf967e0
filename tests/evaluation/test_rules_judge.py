"""The judge `rules`: points by hand, and problems of its file by path, rule and key."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minimind_dpo.evaluation.judges.rules import KINDS, RulesJudge, read_rules
from minimind_dpo.options.problem import ConfigError

from .planted import asked, written

RULES = """
- {rule: length, max: 12}                        # characters
- {rule: length, min: 4, unit: tokens, points: 2}
- {rule: ends, points: 4}
- {rule: repetition, max: 0.5, points: 8}
- {rule: language, is: same, points: 16}
- {rule: contains, text: [您好, hello], points: -32}
- {rule: matches, pattern: '\\d+$', points: 64}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "ended", "points"),
    [
        ("It is 12", True, 1 + 2 + 4 + 8 + 16 + 64),
        ("It is 12", False, 1 + 2 + 8 + 16 + 64),
        ("是的", True, 1 + 4 + 8),  # 2 characters and an end: fewer than 4 tokens; not English
        ("hello, it is twelve", True, 2 + 4 + 8 + 16 - 32),  # 19 characters
        # "abababababab": of its nine 4-grams seven came before; no word but Latin letters.
        ("abababababab", True, 1 + 2 + 4 + 16),
    ],
)
def test_each_rule_gives_its_points(file: Path, text: str, ended: bool, points: float) -> None:
    answer, prompt = written(text, ended), asked("How many?")
    got = sum(rule.points for rule in read_rules(str(file)) if rule.fits(prompt, answer))
    assert got == points


def test_more_points_are_better_and_as_many_are_a_tie(file: Path) -> None:
    judge = RulesJudge(str(file))
    first = [written("It is 12"), written("It is 12", False), written("It is so")]
    second = [written("It is so"), written("It is 12"), written("It is no")]
    assert judge.compare([asked("?")] * 3, first, second).tolist() == [1.0, -1.0, 0.0]
    assert judge.trust.words == "the form asked for by 7 rules of rules.yaml"
    assert judge.trust.can_judge


def test_a_file_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text(json.dumps([{"rule": "contains", "text": "您"}]), encoding="utf-8")
    judge = RulesJudge(str(path))
    assert judge.compare([asked("?")], [written("您")], [written("你")]).tolist() == [1.0]
    assert judge.trust.words == "the form asked for by one rule of rules.json"


def test_every_problem_of_the_file_is_told_with_its_rule_and_key(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(
        "- {rule: lenght, max: 3}\n"
        "- {rule: length, min: 9, max: 3, points: many}\n"
        "- {rule: matches, pattern: '('}\n"
        "- {rule: contains, texts: x}\n"
        "- {rule: language, is: german}\n"
        "- {rule: repetition, max: 2}\n"
        "- just words\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_rules(str(path))
    told = [str(problem).removeprefix(f"{path}, ") for problem in caught.value.problems]
    kinds = ", ".join(KINDS)
    assert told == [
        f"rule 1, rule=lenght: must be one of {kinds}. Did you mean length?",
        "rule 2, points=many: must be a number.",
        "rule 2, min=9: is above max=3.",
        "rule 3, pattern=(: must be a regular expression of Python's re.",
        "rule 4, texts: is no key of the rule contains. Did you mean text?",
        "rule 4, text: is missing.",
        "rule 5, is=german: must be one of zh, en, other, same.",
        "rule 6, max=2: must be at least 0 and at most 1.",
        f"rule 7, rule: is missing. There are {kinds}.",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{a: 1}", "must be a list of one rule or more"),
        (b"", "must be a list of one rule or more"),
        (b"- {rule: [}", "cannot be read: .*line 1"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_what_is_no_list_of_rules_is_refused(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "rules.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"judge.rules=.*{why}"):
        read_rules(str(path))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
def test_a_pipe_in_the_place_of_rules_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="it is no file"):
        read_rules(str(tmp_path / "pipe"))
