"""What is refused of `judge.*` before anything is read."""

from __future__ import annotations

import pytest

from minimind_dpo.evaluation.options import (
    EndpointOptions,
    EvaluateOptions,
    JudgeOptions,
    judge_problems,
)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (JudgeOptions(), []),
        (JudgeOptions("none", also="pairs"), ["judge.also=pairs: checks a first judge, but"]),
        (JudgeOptions("pairs", also="pairs"), ["judge.also=pairs: is the first judge as well"]),
        (
            JudgeOptions("rules"),
            ["judge.rules: is what the judge rules needs. Give judge.rules=..."],
        ),
        (JudgeOptions("pairs", also="python"), ["judge.python: is what the judge python needs"]),
        (
            JudgeOptions("pairs", rules="r.yaml", votes="v.json"),
            [
                "judge.rules=r.yaml: is for the judge rules, which is not asked",
                "judge.votes=v.json: is for a judge that is not asked",
            ],
        ),
        (
            JudgeOptions(endpoint=EndpointOptions(key_env="sk-secret", request="r.yaml")),
            [
                "judge.endpoint.key_env: is for the judge endpoint, which is not asked",
                "judge.endpoint.request=r.yaml: is for the judge endpoint, which is not asked",
            ],
        ),
        (JudgeOptions("file", also="human"), ["judge.also=human: reads the votes of the first"]),
        (JudgeOptions("human", votes="v.json"), []),
    ],
)
def test_judges_that_lack_or_ignore_a_key_are_told(options: JudgeOptions, told: list[str]) -> None:
    found = [str(problem) for problem in judge_problems(options, EvaluateOptions())]
    assert len(found) == len(told)
    for text, start in zip(found, told, strict=True):
        assert text.startswith(start)


def test_votes_do_not_come_while_a_run_trains() -> None:
    for name in ("file", "human"):
        (problem,) = judge_problems(JudgeOptions(name), EvaluateOptions(every=5))
        assert str(problem).startswith(f"evaluate.every=5: does not do with the judge {name}")
    assert not list(judge_problems(JudgeOptions("pairs"), EvaluateOptions(every=5)))
