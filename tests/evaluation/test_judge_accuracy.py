"""Judges that were not fitted on pairs are held to pairs that are held out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minimind_dpo.config.compose import compose
from minimind_dpo.evaluation.evaluate import Evaluation
from minimind_dpo.evaluation.judges.accuracy import JudgeWithAccuracy, Pairs
from minimind_dpo.evaluation.judges.reward_model import RewardModelJudge
from minimind_dpo.evaluation.judges.votes import BallotBox
from minimind_dpo.evaluation.options import RewardModelOptions
from minimind_dpo.run.build import build_datamodule, build_policy, build_tokenizer
from minimind_dpo.run.evaluation import build_evaluation

from .planted import Scores, asked, silent, written

PROMPTS = [asked("?", number) for number in range(40)]


def judge_right_in(right: int) -> JudgeWithAccuracy:
    """A judge of length, whose preference is the pairs' in so many of 40."""
    sides = (written("long"), written("no"))
    chosen = [sides[0] if number < right else sides[1] for number in range(40)]
    rejected = [sides[1] if number < right else sides[0] for number in range(40)]
    judge = Scores(lambda answer: len(answer.text))
    return JudgeWithAccuracy(judge, lambda: Pairs(PROMPTS, chosen, rejected))


@pytest.mark.parametrize("right", [0, 20, 36])
def test_its_accuracy_is_told_and_decides_nothing(right: int) -> None:
    judge = judge_right_in(right)
    assert judge.trust.accuracy is not None
    assert judge.trust.accuracy.value == right / 40
    assert judge.trust.accuracy.n == 40
    assert judge.trust.can_judge
    assert judge.trust.words == "what the test says"
    assert judge.compare(PROMPTS[:1], [written("ab")], [written("a")]).tolist() == [1.0]


def test_a_reward_model_that_cannot_be_loaded_is_told_once(tmp_path: Path) -> None:
    """Its accuracy is not asked for a second time where the first comparison failed."""
    options = RewardModelOptions(str(tmp_path / "gone"))
    model = RewardModelJudge(options, lambda: torch.device("cpu"), silent)
    judge = JudgeWithAccuracy(model, lambda: Pairs(PROMPTS[:1], [written("a")], [written("b")]))
    evaluation = Evaluation.__new__(Evaluation)
    evaluation.task = SimpleNamespace(prompts=PROMPTS[:1])  # type: ignore[assignment]
    evaluation._drawn = [], [written("b")]
    judged = evaluation._judged(judge, [written("a")])
    assert judged.trust.unable.startswith(f"judge.reward_model.path={tmp_path / 'gone'}: ")
    assert not judged.trust.can_judge


def test_rules_are_held_to_the_run_s_own_held_out_pairs(tmp_path: Path) -> None:
    """The demo's chosen answers are the polite ones: a rule that asks for that is right."""
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "- {rule: matches, pattern: '您|请|乐意|高兴|[Gg]lad|[Hh]appy|[Pp]leas'}", encoding="utf-8"
    )
    config = compose(
        [
            "experiment=demo",
            f"data.cache_dir={tmp_path / 'cache'}",
            "judge=rules",
            f"judge.rules={rules}",
            "evaluate.prompts=4",
        ]
    )
    tokenizer = build_tokenizer(config)
    data = build_datamodule(config, tokenizer, progress=False)
    data.setup("fit")
    assert data.train_store is not None
    assert data.val_store is not None
    stores = (data.train_store, data.val_store)
    policy = build_policy(config, tokenizer)
    evaluation = build_evaluation(config, policy, data, stores, silent, BallotBox(tmp_path, str))
    assert evaluation is not None
    judge = evaluation.judges[0]
    assert judge is not None
    assert judge.trust.accuracy is not None
    assert judge.trust.accuracy.n == 200
    assert judge.trust.accuracy.low > 0.6
