"""From the configuration of a judge to the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from minimind_dpo.config.schema import Config
from minimind_dpo.demo import judge as demo
from minimind_dpo.demo.questions import question_of
from minimind_dpo.evaluation.answers import Bar, Prompt
from minimind_dpo.evaluation.judges.accuracy import JudgeWithAccuracy, Pairs
from minimind_dpo.evaluation.judges.chat_client import ChatClient
from minimind_dpo.evaluation.judges.endpoint import EndpointJudge
from minimind_dpo.evaluation.judges.judge import Judge
from minimind_dpo.evaluation.judges.pairs import Ground, PairsJudge
from minimind_dpo.evaluation.judges.program import ProgramJudge
from minimind_dpo.evaluation.judges.python import PythonJudge
from minimind_dpo.evaluation.judges.reward_model import RewardModelJudge
from minimind_dpo.evaluation.judges.rules import RulesJudge
from minimind_dpo.evaluation.judges.votes import BallotBox, VotesJudge
from minimind_dpo.evaluation.options import VOTED
from minimind_dpo.evaluation.text import Text
from minimind_dpo.options.problem import ConfigError, Problem


def build_judges(
    config: Config,
    ground: Ground,
    prompts: Sequence[Prompt],
    box: BallotBox,
    device: Callable[[], torch.device],
    held_out: Callable[[], Pairs],
) -> tuple[Judge | None, Judge | None]:
    """`judge.name`, and `judge.also`, which checks it.

    Args:
        config: What they are told.
        ground: What the judge `pairs` is fitted on.
        prompts: What they will judge answers to.
        box: What is voted on.
        device: Says where a model of their own runs.
        held_out: Gives held-out pairs to test a judge on that was not fitted on pairs.

    Raises:
        ConfigError: One does not know one of the prompts, or cannot read what it is told to.
    """
    options, bar = config.judge, ground.bar
    makers: dict[str, Callable[[str, str], Judge]] = {
        "pairs": lambda name, key: PairsJudge(ground),
        "demo": lambda name, key: _demo_judge(prompts, key),
        "rules": lambda name, key: JudgeWithAccuracy(RulesJudge(str(options.rules)), held_out),
        "python": lambda name, key: PythonJudge(str(options.python)),
        "reward_model": lambda name, key: JudgeWithAccuracy(
            RewardModelJudge(options.reward_model, device, bar), held_out
        ),
        "endpoint": lambda name, key: _endpoint_judge(config, bar),
    }
    voting = dict.fromkeys(
        VOTED, lambda name, key: VotesJudge(name, box, options.votes, config.evaluate.seed)
    )
    makers |= voting
    asked = ((options.name, "judge.name"), (options.also, "judge.also"))
    first, also = (makers[name](name, key) if name in makers else None for name, key in asked)
    return first, also


def _endpoint_judge(config: Config, bar: Bar) -> EndpointJudge:
    options = config.judge.endpoint
    judge = EndpointJudge(options, ChatClient(options, Path(options.cache).expanduser()), bar)
    judge.probe()
    return judge


def _demo_judge(prompts: Sequence[Prompt], key: str) -> ProgramJudge:
    for prompt in prompts:
        try:
            question_of(prompt.text)
        except ValueError:
            why = f"knows the prompts of the embedded task alone, and not that of {prompt.source}"
            raise ConfigError([Problem(key, why, "Use judge=pairs.", "demo")]) from None
    return ProgramJudge(
        "demo",
        Text(
            "the manner that the embedded task asks for, and its facts",
            "内置任务要求的语气和它的事实",
        ),
        lambda prompt, answer: demo.judge(prompt, answer).wanted,
        lambda prompt, answer: demo.judge(prompt, answer).correct,
    )
