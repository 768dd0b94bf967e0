"""A whole run on the embedded demo: what it writes, what it refuses, what it says."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from program import Driver
from transformers import AutoModelForCausalLM, AutoTokenizer

from minimind_dpo.demo import HELD_OUT, MODEL, PREFERENCES, TOKENIZER
from minimind_dpo.run.folder import _WRITTEN
from minimind_dpo.run.verdict import COMPARED

STEPS = (
    "trainer.max_steps=3",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "callbacks.judge=none",
    "callbacks.samples.max_new_tokens=4",
)
QUICK = (*STEPS, "evaluate.prompts=null", "evaluate.every=null")
"""Without a verdict, in half of the time."""
SMALL = (
    *STEPS,
    "evaluate.prompts=8",
    "evaluate.every=2",
    "judge.fit_pairs=60",
    "evaluate.max_new_tokens=4",
)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The program itself, in a folder, with overrides; keywords are variables of its process."""
    notes = tmp_path_factory.mktemp("notes")
    return lambda folder, *overrides, **environment: driver.run(
        folder, notes, list(overrides), environment
    )


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    result = run(folder, "experiment=demo", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    return next((folder / "outputs" / "train").iterdir())


def test_the_summary_holds_what_people_compare(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["val_before"]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert summary["steps"] == 3
    assert summary["pairs_seen"] == 48
    assert summary["recognised"]["dialect"] == "v3"
    assert summary["recognised"]["class"] == "Qwen3ForCausalLM"
    expected = {"train", "val", "wall_seconds", "cpu_seconds", "pairs_per_second", "data"}
    assert expected | {"versions", "seed", "weights_changed"} <= summary.keys()


def test_the_export_loads_with_equal_logits_in_both_forms(finished: Path) -> None:
    from minimind_dpo import load_model

    export = finished / "export"
    hf = AutoModelForCausalLM.from_pretrained(export)
    tokenizer = AutoTokenizer.from_pretrained(export)
    ids = tokenizer("3加5等于多少？", return_tensors="pt")["input_ids"]
    native = load_model(export / "dpo_128.pth", export).model
    with torch.no_grad():
        # The native file is float16, as MiniMind's own are.
        torch.testing.assert_close(hf(ids).logits, native(ids).logits, atol=2e-2, rtol=1e-2)
    stored = torch.load(export / "dpo_128.pth", weights_only=True)
    assert stored.keys() == torch.load(MODEL, weights_only=True).keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_the_model_card_tells_data_settings_numbers_and_how_to_load(finished: Path) -> None:
    card = (finished / "export" / "README.md").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    assert "`preferences.jsonl`: 1500 pairs were trained on, 200 were held out" in card
    assert "3 optimizer steps; 48 pairs were seen." in card
    assert "| `loss.type` | sigmoid |" in card
    assert f"| loss | 0.6931 | {summary['val']['loss']:.4f} |" in card
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER")' in card
    assert "--weight dpo --hidden_size 128 --num_hidden_layers 4\n" in card  # dpo_128.pth
    # Nothing of this machine, and no licence that the project could not know.
    assert str(finished.parent) not in card
    assert "\nlicense:" not in card


def test_curves_samples_and_the_configuration_are_kept(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    names = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins")
    names += ("logps/chosen", "logps/rejected", "logratios/chosen", "logratios/rejected", "entropy")
    for side in ("train", "val"):
        assert {f"{side}/{name}" for name in names} <= scalars
    rates = ("grad_norm", "learning_rate", "pairs_per_second", "tokens_per_second")
    assert {f"train/{name}" for name in (*rates, "weights_changed")} <= scalars
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    # The HParams tab, which has val/loss of step 0 as well, adds no second point.
    assert [event.step for event in events.Scalars("val/loss")] == [0, 3]
    for name in COMPARED:  # of the verdict (evaluate.every=2), by which runs are compared there
        assert [event.step for event in events.Scalars(name)] == [2, 3]
    assert "## Step 0" in (finished / "samples.md").read_text()
    assert "beta: 0.1" in (finished / "config.yaml").read_text()


def test_files_under_the_names_of_a_run_s_own_are_never_the_user_s(finished: Path) -> None:
    # What a fresh run would replace is refused by name; the summary is set aside instead.
    assert {path.name for path in finished.iterdir()} - {*_WRITTEN} == {".lock", "summary.json"}


def test_margins_with_a_loss_that_has_none_are_refused_before_training(
    run: Run, tmp_path: Path
) -> None:
    lines = PREFERENCES.read_text().splitlines()[:40]
    asking = [json.dumps({**json.loads(line), "margin": 0.5}) for line in lines]
    (tmp_path / "pairs.jsonl").write_text("\n".join(asking))
    data = ("data.train=pairs.jsonl", f"data.val={HELD_OUT}")
    result = run(tmp_path, "experiment=demo", *data, "loss.type=apo_zero")
    assert result.returncode == 2
    assert "40 pairs ask for a margin (pairs.jsonl:1 first)" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_ends_in_a_verdict(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    verdict = json.loads((finished / "verdict.json").read_text())
    assert summary["verdict"] == verdict
    assert verdict["step"] == 3
    assert verdict["decision"] in ("better", "not better", "worse", "cannot tell")
    assert verdict["sentence"].startswith(f"{verdict['decision']}: ")
    assert (verdict["judge"]["name"], verdict["also"]["name"]) == ("pairs", "demo")
    assert verdict["judge"]["accuracy"]["n"] == 60
    assert verdict["judge"]["win_rate"]["n"] == verdict["prompts"] == 8
    assert verdict["costs"]["kl"]["value"] > 0
    assert verdict["pairs"]["all"]["accuracy"]["n"] == 200
    assert verdict["facts"].keys() == {"known", "lost", "gained"}
    assert verdict["sentence"] in (finished / "export" / "README.md").read_text()


def test_the_answers_behind_a_verdict_are_kept_with_their_prompts(finished: Path) -> None:
    lines = (finished / "answers.jsonl").read_text().splitlines()
    held_out = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    for case in map(json.loads, lines):
        line = int(case["source"].removeprefix("heldout.jsonl:"))
        assert case["prompt"] == held_out[line - 1]["chosen"][:1]
        assert case["policy"].keys() == {"text", "tokens", "ended"}
        assert case["preferences"].keys() == {"pairs", "demo"}
    assert len({case["source"] for case in map(json.loads, lines)}) == 8


def test_verdicts_while_training_are_points_of_a_frontier_and_of_the_curves(finished: Path) -> None:
    points = [json.loads(line) for line in (finished / "frontier.jsonl").read_text().splitlines()]
    assert [point["step"] for point in points] == [2, 3]
    assert 0 < points[0]["kl"] < points[1]["kl"]
    with (finished / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["verdict/kl"]]
    assert [row["step"] for row in rows] == ["2"]
    assert float(rows[0]["verdict/win_rate"]) == points[0]["win_rate"]


def test_a_verdict_disturbs_nothing_and_can_be_left_out(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    rest = ("evaluate.every=null", "evaluate.prompts=null", "run_dir=run")
    result = run(tmp_path, "experiment=demo", *SMALL, *rest)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    with_verdict = json.loads((finished / "summary.json").read_text())
    assert summary["verdict"] is None
    assert not (tmp_path / "run" / "verdict.json").exists()
    for numbers in ("train", "val", "val_before", "weights", "weights_changed"):
        assert summary[numbers] == with_verdict[numbers]
    weights = (folder / "export" / "model.safetensors" for folder in (finished, tmp_path / "run"))
    assert len({digest(file) for file in weights}) == 1


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): path.read_bytes() for path in files}


def test_a_finished_run_that_is_resumed_says_so_and_writes_nothing(
    run: Run, finished: Path
) -> None:
    before = contents(finished)
    args = ("experiment=demo", *SMALL, f"run_dir={finished}")
    result = run(finished.parent, *args, "resume=auto")
    assert result.returncode == 0, result.stderr
    assert "has finished: 3 steps" in result.stdout
    assert "raise trainer.max_steps=3;" in result.stdout
    assert contents(finished) == before
    # Its own config.yaml says what it is.
    result = run(finished.parent, f"resume={finished}")
    assert result.returncode == 0, result.stderr
    assert f"Settings: {finished / 'config.yaml'}\n" in result.stdout
    assert "has finished: 3 steps" in result.stdout
    assert contents(finished) == before


@pytest.mark.parametrize(
    "summary",
    [b"\0" * 100, b'{"steps": 4, "exported": ["config.yaml"], "val": {}, "train": {"loss": "x"}}'],
)
def test_a_broken_summary_and_a_note_among_the_samples_block_no_resume(
    run: Run, finished: Path, tmp_path: Path, summary: bytes
) -> None:
    more = tmp_path / "more"
    shutil.copytree(finished, more)
    (more / "summary.json").write_bytes(summary)
    samples = (more / "samples.md").read_text()
    (more / "samples.md").write_text("# My notes\n\n" + samples)
    result = run(tmp_path, "resume=more", "trainer.max_steps=4")
    assert result.returncode == 0, result.stderr
    assert json.loads((more / "summary.json").read_text())["steps"] == 4
    assert (more / "samples.md").read_text().startswith("# My notes\n\n## Step 0\n")


def test_a_run_that_diverged_fails_and_leaves_its_numbers(run: Run, tmp_path: Path) -> None:
    diverging = ("optim.lr=1e38", "schedule.warmup_ratio=0", "trainer.gradient_clip_val=null")
    result = run(tmp_path, "experiment=demo", *QUICK, *diverging, "run_dir=run")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "hold NaN or infinity" in result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary.get("exported"), summary["bad_steps"]) == (None, 2)


def test_a_finished_run_goes_on_where_its_bound_is_raised(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "more")
    args = ("experiment=demo", *SMALL, "run_dir=more", "resume=auto", "trainer.max_steps=5")
    result = run(tmp_path, *args)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "more" / "summary.json").read_text())["steps"] == 5
    frontier = (tmp_path / "more" / "frontier.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in frontier] == [2, 3, 4, 5]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_run_that_died_before_its_export_writes_it_when_resumed(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    old = {path.name: path.read_bytes() for path in (finished / "export").iterdir()}
    shutil.copytree(finished, tmp_path / "more")
    more = tmp_path / "more"
    args = ("experiment=demo", *SMALL, "run_dir=more", "resume=auto", "trainer.max_steps=5")
    assert run(tmp_path, *args).returncode == 0
    weights, numbers = digest(more / "export" / "model.safetensors"), more / "summary.json"
    expected = json.loads(numbers.read_text())
    # As a kill after the last state leaves it: weights and numbers of the first 3 steps.
    for name, content in old.items():
        (more / "export" / name).write_bytes(content)
    shutil.copy(finished / "summary.json", numbers)
    result = run(tmp_path, *args)
    assert result.returncode == 0, result.stderr
    assert "has finished" not in result.stdout
    assert digest(more / "export" / "model.safetensors") == weights
    summary = json.loads(numbers.read_text())
    assert (summary["steps"], summary["val"]) == (5, expected["val"])
    assert summary["train"] == expected["train"]
    # The same for an earlier state, and where the export is gone.
    again = (*args[:-2], f"resume={more / 'checkpoints' / 'step-00000003.ckpt'}")
    result = run(tmp_path, *again, "trainer.max_steps=3")
    assert result.returncode == 0, result.stderr
    assert json.loads(numbers.read_text())["steps"] == 3
    assert (more / "export" / "model.safetensors").read_bytes() == old["model.safetensors"]
    shutil.rmtree(more / "export")
    assert run(tmp_path, *again, "trainer.max_steps=3").returncode == 0
    assert (more / "export" / "model.safetensors").read_bytes() == old["model.safetensors"]


def plain(summary: Path) -> dict[str, Any]:
    """Numbers of a summary that do not depend on the clock; NaN is no JSON."""

    def refuse(word: str) -> None:
        raise ValueError(word)

    values = json.loads(summary.read_text(), parse_constant=refuse)
    return {key: value for key, value in values.items() if "second" not in key}


def test_a_run_killed_after_its_last_state_leaves_what_an_unbroken_one_leaves(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = tmp_path / "more"
    shutil.copytree(finished, more)
    shutil.rmtree(more / "export")
    (more / "summary.json").unlink()
    result = run(tmp_path, "experiment=demo", *SMALL, "run_dir=more", "resume=auto")
    assert result.returncode == 0, result.stderr
    assert plain(more / "summary.json") == plain(finished / "summary.json")
    files = [folder / "csv" / "metrics.csv" for folder in (more, finished)]
    assert sorted(files[0].read_text().splitlines()) == sorted(files[1].read_text().splitlines())
    events = EventAccumulator(str(more / "tensorboard"))
    events.Reload()
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), tag


def test_a_trial_of_all_parts_writes_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "temporary").mkdir()
    args = ("experiment=demo", *QUICK[1:], "trainer.fast_dev_run=2", "trainer.limit_val_batches=1")
    result = run(
        tmp_path / "here",
        *args,
        f"data.cache_dir={tmp_path / 'cache'}",
        TMPDIR=str(tmp_path / "temporary"),
    )
    assert result.returncode == 0, result.stderr
    assert "Done: every part works" in result.stdout
    assert "step 2/2" in result.stdout
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "temporary").iterdir()) == []


def test_a_run_that_its_time_ends_says_so_and_goes_on(run: Run, tmp_path: Path) -> None:
    args = ("experiment=demo", *QUICK, "run_dir=run")
    result = run(tmp_path, *args, "trainer.max_time=00:00:00:00")
    assert result.returncode == 0, result.stderr
    told = "trainer.max_time ended training after step 1 of 3. Continue it: the same command with "
    assert f"{told}resume=auto run_dir=run" in result.stdout
    result = run(tmp_path, *args, "resume=auto")
    assert result.returncode == 0, result.stderr
    assert "ended training" not in result.stdout
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        changed = [row["step"] for row in csv.DictReader(file) if row["train/weights_changed"]]
    assert changed == ["3"]


def test_a_run_that_diverged_fails_with_a_summary_and_exports_nothing(
    run: Run, tmp_path: Path
) -> None:
    args = ("experiment=demo", *SMALL, "trainer.max_steps=4", "optim.lr=1e10", "run_dir=run")
    result = run(tmp_path, *args)
    assert result.returncode == 1
    assert "Error: the run diverged, nothing is exported: " in result.stderr
    assert "Lower optim.lr" in result.stderr
    assert "Traceback" not in result.stderr
    summary = plain(tmp_path / "run" / "summary.json")
    assert summary["steps"] == 4
    assert summary["bad_steps"] >= 2
    assert "diverged" in summary
    assert not (tmp_path / "run" / "export").exists()


def test_callbacks_and_loggers_of_ones_own_run_beside_ours(run: Run, tmp_path: Path) -> None:
    early = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1"
    mine = "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: mine, version: one}"
    result = run(
        tmp_path,
        "experiment=demo",
        *QUICK,
        "run_dir=run",
        "trainer.max_steps=9",
        "trainer.val_check_interval=1",
        # The loss falls: with `max` each validation after the first is one without improvement.
        f"callbacks.extra=[{early}, mode: max}}]",
        f"logger.extra=[{mine}]",
    )
    assert result.returncode == 0, result.stderr
    assert "ended after step 2 of 9" in result.stdout
    curves = [
        list(csv.DictReader((tmp_path / folder / "metrics.csv").read_text().splitlines()))
        for folder in ("run/csv", "mine/lightning_logs/one")
    ]
    losses = [[(r["step"], r["val/loss"]) for r in rows if r["val/loss"]] for rows in curves]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == ["0", "1", "2"]
    # EarlyStopping has seen the validations of step 1 and 2; the one of step 0 is before training.


def test_an_own_callback_that_cannot_be_made_is_named_before_anything_is_written(
    run: Run,
    tmp_path: Path,
) -> None:
    extra = "callbacks.extra=[{_target_: lightning.pytorch.callbacks.EarlyStopping}]"
    result = run(tmp_path, "experiment=demo", *QUICK, extra)
    assert result.returncode == 2
    assert "callbacks.extra[0]=lightning.pytorch.callbacks.EarlyStopping: cannot be made" in (
        result.stderr
    )
    assert "monitor" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "outputs" / "train").exists()


def test_numbers_of_no_validation_have_no_step(run: Run, tmp_path: Path) -> None:
    none = ("trainer.limit_val_batches=0", "trainer.max_steps=1", "run_dir=run")
    result = run(tmp_path, "experiment=demo", *QUICK, *none)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["val_last"] == {}
    assert summary["weights"].keys() == {"export", "train"}


def test_the_numbers_are_of_the_weights_that_are_exported(run: Run, tmp_path: Path) -> None:
    # The higher the loss the better, so that the best weights are the first that were validated.
    args = (
        "experiment=demo",
        *QUICK,
        "run_dir=run",
        "export.which=best",
        "callbacks.checkpoint.mode=max",
        "trainer.val_check_interval=1",
        "trainer.limit_val_batches=1.0",
    )
    result = run(tmp_path, *args)
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    of = summary["weights"]
    assert (of["export"], of["val"], of["val_last"], of["train"], of["val_before"]) == (
        1,
        1,
        3,
        3,
        0,
    )
    with (tmp_path / "run" / "csv" / "metrics.csv").open() as file:
        losses = {r["step"]: float(r["val/loss"]) for r in csv.DictReader(file) if r["val/loss"]}
    assert list(losses) == ["0", "1", "2", "3"]
    assert summary["val"]["loss"] == losses["1"]
    assert summary["val_last"]["loss"] == losses["3"]


def test_a_base_model_trains_on_plain_text_and_samples_from_it(run: Run, tmp_path: Path) -> None:
    """No chat template, and nothing said of one: the run's own prompts are continued."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    ).save_pretrained(tmp_path / "base")
    rows = [{"prompt": f"{n}+{n}=", "chosen": str(2 * n), "rejected": "0"} for n in range(1, 60)]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("model.path=base", "data.train=plain.jsonl", "trainer.accelerator=cpu", *QUICK)
    result = run(tmp_path, *command, "data.num_workers=0")
    assert result.returncode == 2
    assert "it predicts these answers no better than chance" in result.stderr
    knows_nothing = "guard.check_model=false"
    result = run(tmp_path, *command, "data.num_workers=0", "run_dir=run", knows_nothing)
    assert result.returncode == 0, result.stdout + result.stderr
    samples = (tmp_path / "run" / "samples.md").read_text()
    prompts = set(re.findall(r"^\*\*(.*)\*\*$", samples, flags=re.M))
    assert len(prompts) == 4
    assert prompts <= {row["prompt"] for row in rows}
    turns = {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "turns.jsonl").write_text(json.dumps({**turns, "rejected": turns["chosen"]}))
    result = run(tmp_path, "model.path=base", "data.train=turns.jsonl")
    assert result.returncode == 2
    assert "turns.jsonl:1 has turns or tools, which need a chat template" in result.stderr
    assert "Traceback" not in result.stderr
