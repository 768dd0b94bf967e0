"""What a job of a sweep is started with, and what is read back from it."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind_dpo.config.command_line import quoted
from minimind_dpo.config.compose import compose
from minimind_dpo.run.sweep import Job, devices_of_job, objective, run_sweep, unfinished_jobs
from minimind_dpo.training.signals import Stopped, StopRequest


@pytest.mark.parametrize("name", ["plain", "with space", "a=b,c", "it's", "back\\slash", "{x}[y]"])
def test_any_folder_can_be_given_as_an_override(name: str) -> None:
    assert compose(["experiment=demo", f"run_dir={quoted(name)}"]).run_dir == name


def test_jobs_at_a_time_get_devices_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def devices(devices: Any, jobs: int = 4) -> list[str | None]:
        return [devices_of_job(number, devices) for number in range(jobs)]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert devices(1) == [None] * 4
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(1) == devices("1") == devices("auto") == ["0", "1", "2", "3"]
    # Fewer devices than jobs: they share.
    assert devices(2, 3) == ["0,1", "2,3", "0,1"]
    assert devices("0,2") == devices([1]) == [None] * 4  # a job that names its own keeps them
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices(1) == ["5", "7", "5", "7"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job whose process would end at once, with nothing done."""
    monkeypatch.setattr(sys, "executable", "true")
    return Job(tmp_path / "0", ["loss.beta=0.1"])


def test_a_job_that_is_done_is_not_run_again_and_another_is_refused(job: Job) -> None:
    sweep, summary = job.folder.parent, job.folder / "summary.json"
    assert math.isnan(job.result())  # its process has left no summary
    assert unfinished_jobs(sweep) == ["0"]
    summary.write_text(json.dumps({"val": {"loss": 0.5}, "train": {"loss": 0.4}}))
    (sweep / ".failed").unlink()
    assert job.result() == 0.5
    assert unfinished_jobs(sweep) == []
    summary.write_text(json.dumps({"val": {}, "train": {"loss": 0.4}}))
    assert objective(job.folder) == 0.4


@pytest.mark.parametrize(
    "other",
    [Job(Path("0"), ["loss.beta=0.2"]), Job(Path("0"), ["loss.beta=0.1"], settings="seed: 3")],
)
def test_a_failed_job_is_unfinished_whatever_another_has_left_in_its_folder(
    job: Job, other: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    job.result()
    (job.folder / "summary.json").write_text(json.dumps({"val": {"loss": 0.5}}))
    (job.folder.parent / ".failed").unlink()
    assert math.isnan(replace(other, folder=job.folder).result())
    assert "holds another job. Name another run_dir" in capsys.readouterr().err
    assert unfinished_jobs(job.folder.parent) == ["0"]


@pytest.mark.parametrize("junk", ["[1]", '{"overrides": 5}', "", "{", None])
def test_junk_in_a_job_s_file_is_a_failed_job(job: Job, junk: str | None) -> None:
    job.folder.mkdir()
    if junk is None:
        (job.folder / "job.json").mkdir()
    else:
        (job.folder / "job.json").write_text(junk)
    assert math.isnan(job.result())
    assert unfinished_jobs(job.folder.parent) == ["0"]


@pytest.mark.parametrize("junk", ["[1]", '{"val": {"loss": "low"}}', '{"val": 3}', "", "{}"])
def test_a_summary_without_a_loss_is_that_of_a_job_to_be_run(job: Job, junk: str) -> None:
    job.folder.mkdir()
    (job.folder / "summary.json").write_text(junk)
    assert math.isnan(job.result())
    assert unfinished_jobs(job.folder.parent) == ["0"]


def test_a_sweep_ends_with_one_and_its_unfinished_jobs_or_with_what_stopped_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(tmp_path / "all done", lambda: None) == 0
    failing = Job(tmp_path / "some" / "10", ["seed=1"])
    assert run_sweep(tmp_path / "some", lambda: failing.failed("no disk") and None) == 1
    told = capsys.readouterr()
    assert "job 10 (seed=1) failed: no disk" in told.err
    assert f"Unfinished jobs of {tmp_path / 'some'}: 10. The same command with" in told.out

    def stopped() -> None:
        raise SystemExit(143)

    assert run_sweep(tmp_path / "stopped", stopped) == 143
    assert f"run_dir={tmp_path / 'stopped'} runs what is left" in capsys.readouterr().out


class OneRank:
    world_size = 1


def test_a_signal_is_a_request_while_training_and_an_end_before_it() -> None:
    trainer: Any = OneRank()
    request = StopRequest()
    request.install()
    try:
        with pytest.raises(Stopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        request.signum, request.waits_for = 0, "this step"
        assert request.ask(trainer)() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert str(request.ask(trainer)()) == "stopped by SIGUSR1"
        request.signum = 0
        os.kill(os.getpid(), signal.SIGINT)
        assert str(request.ask(trainer)()) == "stopped by SIGINT"
    finally:
        request.restore()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
