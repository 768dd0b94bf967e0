"""`evaluate`: the verdict on a run anew, on two runs, and on any two models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composed import composed

from minimind_dpo import evaluate
from minimind_dpo.demo import MODEL, TOKENIZER
from minimind_dpo.evaluation.compare import Comparison
from minimind_dpo.evaluation.judged import Judged
from minimind_dpo.evaluation.judges.judge import Trust
from minimind_dpo.models.export import save_hf
from minimind_dpo.models.load import load_model
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.identity import policy_digest


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def judged(preferences: np.ndarray) -> Any:
    """A verdict that holds these preferences and nothing else."""
    judge = Judged("planted", Trust("what is planted"), preferences, np.zeros(len(preferences)))
    return SimpleNamespace(judged=judge)


def test_the_verdict_on_a_run_anew_is_its_own_number_for_number(
    finished_run: Path, tmp_path: Path
) -> None:
    evaluate.run([f"run={finished_run}", f"to={tmp_path}"])
    own, anew = content(finished_run / "verdict.json"), content(tmp_path / "verdict.json")
    assert (own.pop("step"), anew.pop("policy")) == (2, str(finished_run))
    assert anew == own
    answers = [(folder / "answers.jsonl").read_text() for folder in (finished_run, tmp_path)]
    assert answers[0] == answers[1]


def test_more_prompts_and_another_judge_are_keys_of_the_configuration(
    finished_run: Path, tmp_path: Path
) -> None:
    keys = ["evaluate.prompts=12", "judge=demo", "evaluate.max_new_tokens=4"]
    evaluate.run([f"run={finished_run}", f"to={tmp_path}", *keys])
    verdict = content(tmp_path / "verdict.json")
    assert (verdict["prompts"], verdict["judge"]["name"]) == (12, "demo")
    assert verdict["settings"]["max_new_tokens"] == 4


def test_two_runs_are_compared_prompt_by_prompt(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one here is the start itself: all ties, no KL."""
    start = tmp_path / "start"
    shutil.copytree(finished_run, start)
    shutil.rmtree(start / "export")
    loaded = load_model(MODEL, TOKENIZER)
    save_hf(loaded.model, loaded.tokenizer, start / "export")
    evaluate.run([f"run={start}", f"against={finished_run}", f"to={tmp_path / 'out'}"])
    first, second = (content(tmp_path / "out" / name / "verdict.json") for name in ("start", "run"))
    assert first["costs"]["kl"]["value"] == 0.0
    assert first["judge"]["ties"] == 8
    own = content(finished_run / "verdict.json")
    assert second["judge"]["wins"] == own["judge"]["wins"]
    (comparison,) = content(tmp_path / "out" / "comparison.json")["comparisons"]
    assert (comparison["policy"], comparison["first"]) == ("run", "start")
    if own["judge"]["can_judge"]:
        gained = own["judge"]["win_rate"]["value"] - 0.5
        assert comparison["difference"]["value"] == pytest.approx(gained)
    assert comparison["sentence"] in capsys.readouterr().out


def test_two_models_are_compared_on_any_pairs(finished_run: Path, tmp_path: Path) -> None:
    """Without data.train half of the prompts is asked, the other half fits the judge."""
    arguments = [
        f"model.path={finished_run / 'export'}",
        f"reference.path={MODEL}",
        f"data.val={finished_run.parent / 'val.jsonl'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "evaluate.max_new_tokens=12",
        f"to={tmp_path / 'out'}",
    ]
    evaluate.run(arguments)
    verdict = content(tmp_path / "out" / "verdict.json")
    assert verdict["prompts"] == 12
    assert verdict["pairs"]["all"]["accuracy"]["n"] == 12
    assert verdict["costs"]["kl"]["value"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "run: is missing, and so is model.path"),
        (["against=x"], "against=x: is compared with a run, and none is named"),
        ([f"model.path={MODEL}"], "reference.path: is missing"),
        ([f"model.path={MODEL}"], "data.val: is missing"),
        (["run=RUN", "evaluate=none"], "evaluate.prompts=0: leaves nothing to ask"),
        (["run=RUN", "judge.name=pears"], "Did you mean pairs?"),
        (["run=RUN", "to=RUN"], "to=RUN: is the folder of a run"),
        (["run=RUN", "agains=RUN"], "agains=RUN: there is no such key. Did you mean against?"),
        (["run=RUN", "against=RUN", "judge=human"], "judge.name=human: is voted on for one run"),
        (["run=[RUN,RUN]", "judge.also=file"], "judge.also=file: is voted on for one run"),
        (["run=RUN", "evaluate.every=5"], "evaluate.every=5: is not read by evaluate"),
        (["run=RUN", "data.num_workers=0"], "data.num_workers=0: is not read by evaluate"),
        (["run=RUN", "data.val=null", "data.val_fraction=0"], "hold out no prompt to ask"),
    ],
)
def test_what_is_wrong_is_told(
    arguments: list[str], words: str, finished_run: Path, tmp_path: Path
) -> None:
    here = [argument.replace("RUN", str(finished_run)) for argument in arguments]
    if "to=RUN" not in arguments:
        here.append(f"to={tmp_path}")
    with pytest.raises(ConfigError) as error:
        evaluate.run(here)
    assert words in str(error.value).replace(str(finished_run), "RUN")


def test_the_share_that_is_asked_may_be_typed() -> None:
    for typed, share in (([], 0.5), (["data.val_fraction=0.25"], 0.25)):
        config = composed(["model.path=x", "reference.path=y", "data.val=z", *typed])
        evaluate._complete(config)
        assert (config.data.train, config.data.val, config.data.val_fraction) == (["z"], [], share)


def test_votes_on_two_models_are_read_by_the_same_command_and_for_no_other_model(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    arguments = [
        f"reference.path={MODEL}",
        f"data.val={finished_run.parent / 'val.jsonl'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "evaluate.max_new_tokens=4",
        "evaluate.prompts=4",
        "judge=file",
        f"to={to}",
    ]
    loaded = load_model(MODEL, TOKENIZER)
    with torch.no_grad():
        loaded.model.lm_head.weight.mul_(0.5)
    save_hf(loaded.model, loaded.tokenizer, tmp_path / "model")
    model = f"model.path={tmp_path / 'model'}"
    evaluate.run([model, *arguments])
    told = capsys.readouterr().out.replace("\n", " ")
    assert f"Then: the same command with to={to} judge.votes=VOTES.jsonl" in told
    lines = (to / "to_judge.jsonl").read_text(encoding="utf-8").splitlines()
    votes = to / "votes.jsonl"
    votes.write_text("\n".join(line[:-1] + ', "winner": "a"}' for line in lines), encoding="utf-8")
    arguments.append(f"judge.votes={votes}")
    evaluate.run([model, *arguments])
    assert content(to / "verdict.json")["judge"]["unjudged"] == 0
    other = [f"model.path={MODEL}", f"model.tokenizer={TOKENIZER}"]
    with pytest.raises(ConfigError, match=r"judge.votes: are on answers of another policy"):
        evaluate.run([*other, *arguments])


def test_a_run_taken_further_is_another_policy(tmp_path: Path) -> None:
    config = composed(["model.path=x"])
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 2}")
    (tmp_path / "summary.json").write_text('{"weights": {"export": 2}}')
    digest = policy_digest(config, tmp_path)
    assert digest == policy_digest(config, tmp_path, step=2) != policy_digest(config, tmp_path, 3)
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 3}")
    assert digest != policy_digest(config, tmp_path)


def test_a_difference_is_told_by_its_interval_alone() -> None:
    """Of 40 prompts the first wins 20 and loses 20; the second wins 38."""
    random = np.random.default_rng(0)
    even = random.permutation([1.0] * 20 + [-1.0] * 20)
    strong = np.array([1.0] * 38 + [-1.0] * 2)
    clear = Comparison.of("B", judged(strong), "A", judged(even))
    assert clear.difference is not None
    assert clear.difference.value == pytest.approx(38 / 40 - 20 / 40)
    assert clear.sentence.startswith("B is better than A: B wins +45 [")
    other_way = Comparison.of("A", judged(even), "B", judged(strong))
    assert other_way.sentence.startswith("B is better than A: A wins -45 [")
    same = Comparison.of("B", judged(even[::-1].copy()), "A", judged(even))
    assert same.sentence.startswith("cannot tell B from A: +0 [")
    unknown = np.full(40, np.nan)
    nobody = Comparison.of("B", judged(unknown), "A", judged(even))
    assert nobody.difference is None
    assert nobody.sentence == "cannot tell B from A: nobody could judge both"
