"""Where a run writes, what it resumes from, and when it is not the same run."""

from __future__ import annotations

import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from composed import composed

from minimind_dpo.data.batches.step_plan import carry_over
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.folder import Run, claim_run, decide_run, make_folder, tell_ranks
from minimind_dpo.run.identity import file_digest
from minimind_dpo.run.lock import FolderLock
from minimind_dpo.training.resume.checkpoint_io import (
    HEADER,
    AtomicCheckpointIO,
    Header,
    step_file,
)
from minimind_dpo.training.resume.position import ResumeMismatchError, check_belongs, differences


@pytest.fixture(autouse=True)
def _outside_any_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MINIMIND_DPO_RUN")):
            monkeypatch.delenv(name)


def run_with(folder: Path, *steps: int) -> Path:
    for step in steps:
        header = asdict(Header(step, 0, {}, {}, -1, {}))
        state = {"state_dict": {}, "loops": {}, HEADER: header, "w": torch.zeros(1)}
        AtomicCheckpointIO().save_checkpoint(state, step_file(folder / "checkpoints", step))
    return folder


def decide(*overrides: str) -> Any:
    return decide_run(composed(["experiment=demo", *overrides]))


def test_auto_takes_the_newest_state_and_starts_fresh_where_there_is_none() -> None:
    run_with(Path("run"), 5, 12)
    assert decide("run_dir=run", "resume=auto").checkpoint.name == "step-00000012.ckpt"
    assert decide("run_dir=new", "resume=auto").checkpoint is None


def test_a_run_reads_its_state_once_and_ranks_do_not_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_with(Path("run"), 5, 12)
    passes: list[zipfile.ZipFile] = []
    check = zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda z: passes.append(z) or check(z))
    run = decide("run_dir=run", "resume=auto")
    assert run.header.step == 12
    assert len(passes) == 1
    tell_ranks(run)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MINIMIND_DPO_LAUNCHER", str(os.getppid()))
    told = decide("run_dir=run", "resume=auto")
    assert told.header == run.header
    assert told.checkpoint == run.checkpoint.absolute()
    assert len(passes) == 1
    assert Run.from_text(Run(Path("a").absolute()).to_text()) == Run(Path("a").absolute())


def claim(*overrides: str) -> Run:
    with FolderLock() as lock:
        return claim_run(composed(["experiment=demo", *overrides]), lock)


@pytest.mark.parametrize("name", ["export/thesis.txt", "config.yaml", "csv/a.csv", "answers.jsonl"])
def test_a_folder_with_files_of_the_user_s_own_is_left_as_it_is(name: str) -> None:
    file = Path("proj") / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    run_with(Path("run"), 5)
    for words in (
        ["run_dir=proj"],
        ["run_dir=proj", "resume=auto"],
        ["run_dir=proj", "resume=run"],
    ):
        for _ in range(2):  # nothing is left that would pass for the mark of a run
            with pytest.raises(ConfigError, match=r"run_dir=proj: holds .*no run has written"):
                claim(*words)
    assert [path for path in Path("proj").rglob("*") if path.is_file()] == [file]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize("name", [".lock", "csv/metrics.csv", "report.html"])
def test_a_pipe_among_the_files_of_a_run_is_named_and_not_waited_for(name: str) -> None:
    Path("run/csv").mkdir(parents=True)
    os.mkfifo(Path("run") / name)
    with pytest.raises(ConfigError, match=f"run_dir=run: holds {name}, which is a pipe"):
        claim("run_dir=run", "resume=auto")


def test_a_folder_that_holds_other_files_is_good_for_a_run() -> None:
    Path("proj/export").mkdir(parents=True)
    Path("proj/notes.txt").write_text("mine")
    assert claim("run_dir=proj").folder == Path("proj")
    # A run that died before its first state: its lock file is its mark.
    Path("proj/config.yaml").write_text("name: dpo")
    assert claim("run_dir=proj").checkpoint is None


def test_a_fresh_run_does_not_overwrite_another() -> None:
    run_with(Path("run"), 5)
    with pytest.raises(ConfigError, match="holds a run already"):
        decide("run_dir=run")
    done = Path("done")
    done.mkdir()
    (done / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="resume=auto"):
        decide("run_dir=done")
    (Path("empty")).mkdir()
    assert decide("run_dir=empty").checkpoint is None


def test_a_named_run_or_state_goes_on_in_its_own_folder_unless_another_is_given() -> None:
    run_with(Path("run"), 5, 12)
    for named in ("run", "run/checkpoints", "run/checkpoints/step-00000012.ckpt"):
        run = decide(f"resume={named}")
        assert (run.folder, run.checkpoint.name) == (Path("run"), "step-00000012.ckpt")
    assert decide("resume=run/checkpoints/step-00000005.ckpt").checkpoint.name[5:13] == "00000005"
    assert decide("resume=run", "run_dir=fork").folder == Path("fork")
    run_with(Path("other"), 3)
    with pytest.raises(ConfigError, match="another run"):
        decide("resume=run", "run_dir=other")
    Path("bare").mkdir()
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        decide("resume=bare")


def test_a_requeued_job_goes_on_in_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    first = decide()
    assert first.folder == Path("outputs/train/slurm-77_demo")
    run_with(first.folder, 4)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert decide().checkpoint.name == "step-00000004.ckpt"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert decide().folder.name == "slurm-70_3_demo"


def test_two_runs_of_one_second_get_two_folders() -> None:
    run = decide()
    folders = set()
    for _ in range(3):
        with FolderLock() as lock:
            folders.add(make_folder(run, lock).folder)
    assert len(folders) == 3
    assert all(folder.is_dir() for folder in folders)


def test_a_difference_is_named_and_a_new_tokenizer_is_not_called_new_data() -> None:
    saved = {"data": {"train": "a", "seed": 1}, "tokenizer": {"rules": "x"}, "loss": {"beta": 0.1}}
    assert differences(saved, saved) == []
    assert differences(saved, {**saved, "loss": {"beta": 0.2}}) == [
        "loss: beta was 0.1, is now 0.2"
    ]
    assert differences(saved, {**saved, "data": {"train": "b", "seed": 1}}) == [
        "data: train was a, is now b"
    ]
    other = {**saved, "data": {"train": "b", "seed": 1}, "tokenizer": {"rules": "y"}}
    assert differences(saved, other) == ["tokenizer: rules was x, is now y"]
    with pytest.raises(ResumeMismatchError, match=r"(?s)state\.ckpt.*rules.*resume_with_changes"):
        check_belongs(saved, other, "state.ckpt")


def test_a_digest_is_of_weights_and_settings(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    before = file_digest(str(folder))
    (folder / "README.md").write_text("words")
    assert file_digest(str(folder)) == before
    (folder / "config.json").write_text("{ }")
    assert file_digest(str(folder)) != before
    assert file_digest("some/hub-name") == "some/hub-name"


def test_positions_are_carried_over_in_whole_steps() -> None:
    def shape(batch_size: int, accumulate: int, world_size: int, epoch: int) -> dict[str, int]:
        return {
            "batch_size": batch_size,
            "accumulate": accumulate,
            "world_size": world_size,
            "epoch_batches": epoch,
        }

    # 24 pairs a step; 100 pairs: 4 whole steps and one of 4 pairs.
    one, two, other = shape(4, 6, 1, 25), shape(4, 3, 2, 13), shape(5, 4, 1, 20)
    assert carry_over(0, one, two) == (0, True)
    assert carry_over(18, one, two) == (9, True)
    assert carry_over(9, two, one) == (18, True)
    assert carry_over(25, one, two) == (13, True)
    # 20 pairs a step: 72 pairs lie between its steps 3 and 4.
    assert carry_over(18, one, other) == (12, False)
    assert carry_over(25, one, other) == (20, True)
