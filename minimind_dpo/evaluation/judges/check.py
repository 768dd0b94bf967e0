"""What is wrong with what a judge is to read or to import: found before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from minimind_dpo.evaluation.judges.ballots import read_votes
from minimind_dpo.evaluation.judges.endpoint import read_request
from minimind_dpo.evaluation.judges.python import PythonJudge
from minimind_dpo.evaluation.judges.reward_model import load
from minimind_dpo.evaluation.judges.rules import read_rules
from minimind_dpo.evaluation.options import VOTED, JudgeOptions
from minimind_dpo.options.problem import ConfigError, Problem

_TRIALS: Final[dict[str, Callable[[JudgeOptions], Any]]] = {
    "rules": lambda options: read_rules(str(options.rules)),
    "python": lambda options: PythonJudge(str(options.python)),
    "reward_model": lambda options: load(str(options.reward_model.path), "meta"),
    "endpoint": lambda options: read_request(options.endpoint.request),
    **dict.fromkeys(VOTED, lambda options: options.votes and read_votes(options.votes)),
}
"""By judge: what raises ConfigError."""


def judge_trials(options: JudgeOptions) -> Iterator[Problem]:
    """Problems of files and code of the judges that are asked for; their own keys are in order."""
    for name in options.names:
        try:
            _TRIALS.get(name, lambda options: None)(options)
        except ConfigError as error:
            yield from error.problems
