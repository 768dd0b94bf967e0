"""From the configuration of a judge to the judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from minimind_dpo.config.schema import Config
from minimind_dpo.demo import judge as demo
from minimind_dpo.demo.questions import question_of
from minimind_dpo.evaluation.answers import Prompt
from minimind_dpo.evaluation.judges.accuracy import JudgeWithAccuracy, Pairs
from minimind_dpo.evaluation.judges.chat_client import ChatClient
from minimind_dpo.evaluation.judges.endpoint import EndpointJudge
from minimind_dpo.evaluation.judges.judge import Judge
from minimind_dpo.evaluation.judges.pairs import Ground, PairsJudge
from minimind_dpo.evaluation.judges.program import ProgramJudge
from minimind_dpo.evaluation.judges.python import PythonJudge
from minimind_dpo.evaluation.judges.reward_model import RewardModelJudge
from minimind_dpo.evaluation.judges.rules import RulesJudge
from minimind_dpo.evaluation.judges.votes import VotesJudge
from minimind_dpo.evaluation.text import Text
from minimind_dpo.options.problem import ConfigError, Problem


def build_judge(
    name: str | None,
    config: Config,
    ground: Ground,
    prompts: Sequence[Prompt],
    key: str,
    folder: Path,
    device: Callable[[], torch.device],
    held_out: Callable[[], Pairs] | None,
) -> Judge | None:
    """The judge of a name.

    Args:
        name: As `judge.name` has it.
        config: What it is told.
        ground: What the judge `pairs` is fitted on.
        prompts: What it will judge answers to.
        key: Where its name was given.
        folder: Where it writes.
        device: Says where a model of its own runs.
        held_out: Gives held-out pairs to test a judge on that was not fitted on pairs.

    Raises:
        ConfigError: It does not know one of the prompts, or cannot read what it is told to.
    """
    options = config.judge
    match name:
        case "pairs":
            return PairsJudge(ground)
        case "demo":
            return _demo_judge(prompts, key)
        case "rules":
            return _with_accuracy(RulesJudge(str(options.rules)), held_out)
        case "python":
            return PythonJudge(str(options.python))
        case "reward_model":
            return _with_accuracy(
                RewardModelJudge(options.reward_model, device, ground.bar), held_out
            )
        case "endpoint":
            client = ChatClient(options.endpoint, Path(options.endpoint.cache).expanduser())
            judge = EndpointJudge(options.endpoint, client, ground.bar)
            judge.probe()
            return judge
        case "file" | "human":
            return VotesJudge(name, folder, options.votes, config.evaluate.seed)
    return None


def _with_accuracy(judge: Judge, held_out: Callable[[], Pairs] | None) -> Judge:
    return judge if held_out is None else JudgeWithAccuracy(judge, held_out)


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
