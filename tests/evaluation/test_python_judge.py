"""The judge `python`: a user's score or comparison, and errors of the user's code by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from minimind_dpo.evaluation.answers import Prompt
from minimind_dpo.evaluation.judges.judge import JudgeError
from minimind_dpo.evaluation.judges.python import PythonJudge
from minimind_dpo.options.problem import ConfigError

from .planted import asked, written

CODE = """
def shorter(prompt, answer, scale=1.0):
    return -len(answer) * scale

def polite(prompt, answer_a, answer_b):
    return ("please" in answer_a) - ("please" in answer_b)

def half(prompt, a, b):
    return 0.5 if a else float("nan")

def first(prompt, answer_a, answer_b):
    return 1

def says_prompt(prompt, answer):
    return float(answer == prompt)

def nothing(prompt, answer):
    return float("nan")

def broken(prompt, answer):
    return {}[answer]

def wordy(prompt, answer):
    return "good"

def too_much(prompt, a, b):
    return 3

def one(prompt): ...

def keyword(prompt, answer, *, style): ...

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taste.py").write_text(CODE)
    (tmp_path / "halfway.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("taste", "halfway"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_two_parameters_are_a_score_and_three_a_comparison() -> None:
    prompts = [asked("?")] * 3
    first = [written("hi please"), written("hello"), written("x")]
    second = [written("hi"), written("hi please"), written("y")]
    assert PythonJudge("taste:shorter").compare(prompts, first, second).tolist() == [-1, 1, 0]
    assert PythonJudge("taste:polite").compare(prompts, first, second).tolist() == [1, -1, 0]
    assert PythonJudge("taste:polite").trust.words == "what taste:polite says"
    got = PythonJudge("taste:half").compare(prompts[:2], [written("a"), written("")], second[:2])
    np.testing.assert_array_equal(got, [0.5, np.nan])


def test_answers_alike_are_a_tie_whatever_the_function_says() -> None:
    """It prefers the first, and gives no score that is a number."""
    one, other = [written("a"), written("a")], [written("a"), written("b")]
    for name, rest in (("first", 1.0), ("nothing", np.nan)):
        got = PythonJudge(f"taste:{name}").compare([asked("?")] * 2, one, other)
        np.testing.assert_array_equal(got, [0.0, rest])


def test_a_prompt_of_several_turns_is_given_whole() -> None:
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    prompt = Prompt(np.array([1], np.int32), turns)  # type: ignore[arg-type]
    judge = PythonJudge("taste:says_prompt")
    said = written("system: Be brief.\n\nuser: Hi")
    assert judge.compare([prompt], [said], [written("Hi")]).tolist() == [1.0]
    assert judge.compare([asked("Hi")], [said], [written("Hi")]).tolist() == [-1.0]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("taste", "must be package.module:function. For a file mine.py here"),
        ("taste:", "must be package.module:function"),
        ("tast:score", "cannot be imported: ModuleNotFoundError: No module named 'tast'"),
        ("halfway:x", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("taste:NUMBER", "names nothing that can be called in .*taste.py"),
        ("taste:long", "names nothing that can be called in .*taste.py"),
        ("taste:one", r"needs 1 arguments. A score takes \(prompt, answer\)"),
        ("taste:keyword", "needs 3 arguments"),
    ],
)
def test_what_cannot_judge_is_refused_before_training(path: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"judge.python={path}: {why}"):
        PythonJudge(path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("broken", r"failed on the prompt at x:7 \(.*taste.py:21\): KeyError: 'hi'"),
        ("wordy", "failed on the prompt at x:7: ValueError: could not convert string to float"),
        ("too_much", "gave 3 for the prompt at x:7, not 1, 0 or -1"),
    ],
)
def test_errors_of_the_user_s_code_are_told_with_prompt_and_line(name: str, why: str) -> None:
    judge = PythonJudge(f"taste:{name}")
    with pytest.raises(JudgeError, match=f"judge.python=taste:{name} {why}"):
        judge.compare([asked("?", 7)], [written("hi")], [written("ho")])
