"""Verdicts on planted policies, whose true win rate is known by judging every answer they give."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from minimind_dpo.config.compose import compose
from minimind_dpo.data.datamodule import PreferenceDataModule
from minimind_dpo.demo import judge as task
from minimind_dpo.demo.questions import question_of
from minimind_dpo.evaluation.alarms import alarms
from minimind_dpo.evaluation.answers import Answer, Prompt
from minimind_dpo.evaluation.evaluate import Evaluation, Task
from minimind_dpo.evaluation.judged import BETTER, CANNOT_TELL, NOT_BETTER, WORSE, Judged
from minimind_dpo.evaluation.judges.judge import JudgeError, Trust
from minimind_dpo.evaluation.judges.pairs import Ground, PairsJudge
from minimind_dpo.evaluation.judges.program import ProgramJudge
from minimind_dpo.evaluation.judges.votes import BallotBox, VotesJudge
from minimind_dpo.evaluation.measures import measure
from minimind_dpo.evaluation.options import EvaluateOptions
from minimind_dpo.evaluation.sampling import draw_answers
from minimind_dpo.evaluation.scoring import score
from minimind_dpo.evaluation.statistics import Estimate
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.build import build_datamodule, build_policy, build_tokenizer
from minimind_dpo.run.judges import build_judges

from .planted import Scores, silent

PROMPTS = 64
REPETITIONS = 4000
"""With so many, chance moves a coverage of 95% by 0.7 points at most."""
DRAWS = 12
"""Answers of each policy to each prompt, all of which are judged."""


def judged(preferences: np.ndarray, longer_by: np.ndarray | None = None) -> Judged:
    longer = np.zeros(len(preferences)) if longer_by is None else longer_by
    return Judged("test", Trust("tests"), preferences, longer)


@pytest.mark.parametrize(
    ("preferences", "decision"),
    [
        ([1.0] * 40 + [0.0] * 24, BETTER),
        ([-1.0] * 40 + [0.0] * 24, WORSE),
        ([0.0] * 64, NOT_BETTER),
        ([1.0, -1.0] + [0.0] * 62, NOT_BETTER),
        ([1.0, -1.0] * 32, CANNOT_TELL),
        ([1.0] * 3, CANNOT_TELL),
        ([np.nan] * 64, CANNOT_TELL),
    ],
)
def test_the_interval_alone_decides(preferences: list[float], decision: str) -> None:
    assert judged(np.array(preferences)).decision == decision


def test_a_judge_that_cannot_judge_decides_nothing_however_many_it_prefers() -> None:
    blind = Trust("x", Estimate(0.55, 0.45, 0.65, 100))
    assert Judged("x", blind, np.ones(64), np.zeros(64)).decision == CANNOT_TELL
    assert Judged("x", blind, np.ones(64), np.zeros(64)).prompts_to_decide is None


def test_prompts_that_could_not_be_judged_are_counted_and_left_out() -> None:
    content = judged(np.array([1.0, np.nan, -1.0, 0.0, 0.5])).to_json()
    counts = {name: content[name] for name in ("wins", "ties", "losses", "unjudged")}
    assert counts == {"wins": 2, "ties": 1, "losses": 1, "unjudged": 1}
    assert content["win_rate"]["value"] == (1.0 + 0.0 + 0.5 + 0.75) / 4


class Demo:
    """The embedded task: its data, its model, and both judges."""

    def __init__(self, cache: Any) -> None:
        config = compose(["experiment=demo", f"data.cache_dir={cache}"])
        self.tokenizer = build_tokenizer(config)
        self.data: PreferenceDataModule = build_datamodule(config, self.tokenizer, progress=False)
        self.data.setup("fit")
        self.config = config
        assert self.data.train_store is not None
        assert self.data.val_store is not None
        self.train = [self.data.train_store[row] for row in range(500)]
        self.held_out = list(self.data.val_store)
        self.prompts = [self._prompt(pair.prompt_ids) for pair in self.held_out]
        self.reference = self.model()
        self.ground = Ground(
            lambda: nullcontext(self.reference),
            self.train,
            self.held_out,
            self.data.collate,
            16384,
            48,
            silent,
        )
        self.pairs = PairsJudge(self.ground)  # fitted once, when it is first asked

    def model(self) -> PreTrainedModel:
        return build_policy(self.config, self.tokenizer).model

    def _prompt(self, ids: np.ndarray) -> Prompt:
        text = self.decode(ids).split("user\n")[1].split("\nassistant")[0]
        question_of(text)  # known to the task's judge
        return Prompt(ids, text)

    def decode(self, ids: Any) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def answers(self, prompts: list[Prompt], seed: int) -> list[Answer]:
        """The reference's, cut as the task cuts them."""
        return draw_answers(
            self.reference,
            [prompt.ids.tolist() for prompt in prompts],
            self.decode,
            end_ids=[self.tokenizer.eos_token_id],
            max_new_tokens=48,
            seed=seed,
            batch_size=200,
        )

    def written(self, ids: np.ndarray) -> Answer:
        return Answer(self.decode(ids), ids, True)

    def evaluation(self, prompts: int, judge: Any, also: Any = None, seed: int = 0) -> Evaluation:
        task = Task(
            self.prompts[:prompts],
            self.held_out,
            [prompt.ids for prompt in self.prompts[:prompts]],
            "prompts",
            [self.tokenizer.eos_token_id],
            self.decode,
            self.data.collate,
        )
        options = EvaluateOptions(max_new_tokens=48, batch_size=128, seed=seed)
        return Evaluation(task, lambda: nullcontext(self.reference), judge, also, options, silent)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    torch.set_num_threads(1)
    return Demo(tmp_path_factory.mktemp("cache"))


def program() -> ProgramJudge:
    return ProgramJudge("demo", "manners", lambda prompt, text: task.judge(prompt, text).wanted)


def repeated_verdicts(table: np.ndarray, truth: float) -> tuple[float, list[str]]:
    """Coverage and decisions of verdicts, each on 64 prompts and an answer a side.

    Args:
        table: (prompts, answers, answers) preferences between every two answers.
        truth: The mean over all of it, as a win rate.
    """
    random = np.random.default_rng(0)
    covered, decisions = [], []
    for _ in range(REPETITIONS):
        rows = random.integers(len(table), size=PROMPTS)
        ours, theirs = random.integers(table.shape[1], size=(2, PROMPTS))
        one = judged(table[rows, ours, theirs])
        assert one.win_rate is not None
        covered.append(truth in one.win_rate)
        decisions.append(one.decision)
    return float(np.mean(covered)), decisions


@pytest.mark.parametrize(("ours", "theirs"), [(0.5, 0.5), (0.7, 0.5), (0.95, 0.45)])
@pytest.mark.parametrize("name", ["demo", "pairs"])
def test_intervals_cover_the_win_rate_that_judging_every_answer_gives(
    demo: Demo, name: str, ours: float, theirs: float
) -> None:
    """Policies that answer with the chosen side at these chances, and else with the rejected."""
    random = np.random.default_rng(1)
    judge = program() if name == "demo" else demo.pairs
    sides = [
        (demo.written(pair.chosen_ids), demo.written(pair.rejected_ids)) for pair in demo.held_out
    ]
    chosen, rejected = zip(*sides, strict=True)
    better = judge.compare(demo.prompts, chosen, rejected)  # (200,)
    picks = [random.random((len(better), DRAWS)) < chance for chance in (ours, theirs)]
    table = better[:, None, None] * (picks[0][:, :, None] * 1.0 - picks[1][:, None, :])
    truth = float((1.0 + table.mean()) / 2.0)
    covered, _ = repeated_verdicts(table, truth)
    assert 0.93 <= covered <= 0.97


def test_two_seeds_of_one_model_cannot_be_told_apart(demo: Demo) -> None:
    prompts = demo.prompts[:100]
    drawn = [demo.answers(prompts, 1000 * seed) for seed in range(6)]
    for judge in (program(), demo.pairs):
        table = np.stack(
            [np.stack([judge.compare(prompts, a, b) for b in drawn], 1) for a in drawn], 1
        )  # (prompts, 6, 6)
        assert table.mean() == pytest.approx(0.0, abs=1e-12)
        random, decisions = np.random.default_rng(0), []
        for _ in range(REPETITIONS):
            rows = random.permutation(len(prompts))[:PROMPTS]
            first, second = random.permuted(np.tile(np.arange(6), (PROMPTS, 1)), axis=1).T[:2]
            decisions.append(judged(table[rows, first, second]).decision)
        assert decisions.count(CANNOT_TELL) >= 0.94 * REPETITIONS, judge.name


def test_a_model_against_itself_with_the_same_draws_is_not_better(demo: Demo) -> None:
    verdict = demo.evaluation(PROMPTS, demo.pairs, program())(lambda: nullcontext(demo.reference))
    assert verdict.decision == NOT_BETTER
    assert verdict.costs.kl.value == pytest.approx(0.0, abs=1e-5)
    assert verdict.alarms == ()
    assert verdict.sentence.startswith("not better: won 50% [48, 52] of 64 held-out prompts")


def test_a_judge_that_fails_is_told_beside_what_needs_no_judge(demo: Demo) -> None:
    class Broken(Scores):
        def compare(self, *arguments: Any) -> np.ndarray:
            raise JudgeError("judge.python=m:f failed on the prompt at x:1: KeyError: 'a'")

    verdict = demo.evaluation(8, Broken(len), program())(lambda: nullcontext(demo.reference))
    assert verdict.decision == CANNOT_TELL
    why = "judge.python=m:f failed on the prompt at x:1: KeyError: 'a'"
    assert f"judge scores cannot judge, since {why}; cost: KL " in verdict.sentence
    assert verdict.judged is not None
    assert verdict.judged.to_json()["unjudged"] == 8
    assert verdict.also is not None
    assert verdict.also.win_rate is not None


def test_votes_are_read_for_the_answers_that_were_voted_on(demo: Demo, tmp_path: Path) -> None:
    """Even where the weights, exported in half precision, draw others; of one policy alone."""
    policy, other = demo.model(), demo.model()
    with torch.no_grad():
        for model, scale in ((policy, 0.6), (other, 0.5)):
            model.lm_head.weight.mul_(scale)
    box = BallotBox(tmp_path, lambda: "digest")
    ask = demo.evaluation(8, VotesJudge("file", box, None, 0))(lambda: nullcontext(policy))
    assert ask.advice
    ballots = (tmp_path / "to_judge.jsonl").read_text(encoding="utf-8").splitlines()
    votes = tmp_path / "votes.jsonl"
    votes.write_text("\n".join(line[:-1] + ', "winner": "a"}' for line in ballots))
    judge = VotesJudge("file", box, str(votes), 0)
    drawn = demo.evaluation(8, judge)
    assert drawn(lambda: nullcontext(other)).judged.trust.unable  # type: ignore[union-attr]
    kept = demo.evaluation(8, judge)
    kept._drawn = box.kept(kept.task.prompts)
    verdict = kept(lambda: nullcontext(other))
    assert [case.policy.text for case in verdict.cases] == [c.policy.text for c in ask.cases]
    assert verdict.judged is not None
    decided = np.abs(verdict.judged.preferences)
    assert decided.sum() == len(ballots) > 0
    with pytest.raises(ConfigError, match=r"judge.votes: are of one policy"):
        kept(lambda: nullcontext(policy))


def test_pair_accuracy_that_rises_while_answers_stay_is_no_improvement(demo: Demo) -> None:
    """One small step of DPO: 95% of held-out pairs are ranked right, and nobody could tell."""
    policy = demo.model()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4)
    batch = demo.data.collate(demo.train[:64])
    with torch.no_grad():
        start = score(demo.reference, batch).sums
    for _ in range(2):
        ratios = (score(policy, batch).sums - start).view(2, -1)
        optimizer.zero_grad()
        torch.nn.functional.softplus(-0.1 * (ratios[0] - ratios[1])).mean().backward()
        optimizer.step()
    verdict = demo.evaluation(PROMPTS, demo.pairs)(lambda: nullcontext(policy))
    assert verdict.pairs is not None
    assert verdict.pairs.all.accuracy.low > 0.9
    assert verdict.decision in (NOT_BETTER, CANNOT_TELL)
    assert verdict.costs.kl.value < 0.05


def test_the_judge_pairs_agrees_with_the_demo_s_own_program(demo: Demo) -> None:
    accuracy = demo.pairs.trust.accuracy
    assert accuracy is not None
    assert accuracy.low > 0.9
    first, second = (demo.answers(demo.prompts, seed) for seed in (0, 1000))
    preferences = np.stack(
        [judge.compare(demo.prompts, first, second) for judge in (demo.pairs, program())]
    )
    decided = preferences[:, (preferences != 0).all(0)]
    assert decided.shape[1] > 50
    assert (decided[0] == decided[1]).mean() > 0.9


def lengths(random: np.random.Generator, mean: float) -> np.ndarray:
    return np.maximum(random.poisson(mean, 200), 2)


def answers_of(tokens: np.ndarray) -> list[Answer]:
    return [Answer("", np.arange(n, dtype=np.int32), True) for n in tokens]


def test_a_policy_that_only_writes_longer_answers_wins_by_length_and_sounds_an_alarm() -> None:
    """The judge prefers length, as judges do: by a chance that grows with the difference."""
    random = np.random.default_rng(0)
    policy, reference = answers_of(lengths(random, 24)), answers_of(lengths(random, 20))
    taste = Scores(lambda answer: len(answer.ids) + 4.0 * random.logistic())
    prompts = [Prompt(np.array([1], np.int32), "")] * 200
    longer = np.array([len(a.ids) - len(b.ids) for a, b in zip(policy, reference, strict=True)])
    verdict = judged(taste.compare(prompts, policy, reference), longer.astype(float))
    rate, controlled = verdict.win_rate, verdict.length_controlled
    assert verdict.decision == BETTER
    assert rate is not None
    assert controlled is not None
    assert rate.low > 0.5
    assert 0.5 in controlled
    nothing = np.zeros(0)
    costs = measure(np.ones(200), policy, reference, (nothing, nothing, nothing), "prompts")
    (alarm,) = alarms(costs, verdict)
    assert alarm.startswith("The win may be one of length: at equal length the win rate is ")


@pytest.mark.parametrize(
    ("policy", "alarm"),
    [
        ([Answer("", np.ones(40, np.int32), True)] * 64, "Answers repeat themselves: 97%"),
        ([Answer("", np.arange(12, dtype=np.int32), False)] * 64, "Answers do not end: 0%"),
        (
            [Answer("", np.arange(60, dtype=np.int32), True)] * 64,
            "Answers run long: 60 tokens",
        ),
        ([Answer("", np.arange(3, dtype=np.int32), True)] * 64, "Answers shrink: 3 tokens"),
    ],
)
def test_collapsed_answers_sound_an_alarm(policy: list[Answer], alarm: str) -> None:
    reference = [Answer("", np.arange(20, dtype=np.int32), True)] * 64
    none = np.zeros(0)
    sounded = alarms(measure(np.ones(64), policy, reference, (none, none, none), ""), None)
    assert [text for text in sounded if text.startswith(alarm)]
    same = measure(np.ones(64), reference, reference, (none, none, none), "")
    assert alarms(same, None) == ()


def test_the_demo_judge_is_built_for_its_own_prompts_alone(demo: Demo) -> None:
    elsewhere: Any = (None, lambda: torch.device("cpu"), None)
    judge = replace(demo.config.judge, name="none", also="demo")
    config = replace(demo.config, judge=judge)
    none, built = build_judges(config, demo.ground, demo.prompts, *elsewhere)
    assert none is None
    assert isinstance(built, ProgramJudge)
    foreign = Prompt(demo.prompts[0].ids, "What is love?", "dpo.jsonl:7")
    with pytest.raises(ValueError, match=r"judge.also=demo: knows the prompts .* dpo.jsonl:7"):
        build_judges(config, demo.ground, [foreign], *elsewhere)
