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
from minimind_dpo.report.options import SweepOptions
from minimind_dpo.run.sweep import JobProcess, devices_of_job, run_sweep, unfinished_jobs
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
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobProcess:
    """A job whose process would end at once, with nothing done."""
    monkeypatch.setattr(sys, "executable", "true")
    return JobProcess(tmp_path / "0", ["loss.beta=0.1"])


def test_a_job_that_is_done_is_not_run_again_and_another_is_refused(job: JobProcess) -> None:
    sweep, summary = job.folder.parent, job.folder / "summary.json"
    assert math.isnan(job.result())  # its process has left no summary
    assert unfinished_jobs(sweep) == ["0"]
    summary.write_text(json.dumps({"val": {"loss": 0.5}, "train": {"loss": 0.4}}))
    (sweep / ".failed").unlink()
    by_loss = replace(job, options=SweepOptions(objective="loss"))
    assert by_loss.result() == 0.5
    assert math.isnan(job.result())  # it has no verdict, and so no win rate
    assert unfinished_jobs(sweep) == []
    summary.write_text(json.dumps({"val": {}, "train": {"loss": 0.4}}))
    assert by_loss.result() == 0.4


def test_a_search_goes_by_the_win_rate_within_a_bound_on_the_divergence(job: JobProcess) -> None:
    """Of two runs that win 70%, the one at KL 12 is 20% beyond the bound of 10."""
    job.folder.mkdir()
    (job.folder / "job.json").write_text(json.dumps({"arguments": job.arguments, "settings": ""}))
    (job.folder / "summary.json").write_text(json.dumps({"val": {"loss": 0.5}}))
    (job.folder / "verdict.json").write_text(json.dumps({"judge": {"name": "pairs"}}))
    values = []
    for kl in (9.0, 12.0):
        point = {"step": 3, "win_rate": 0.8, "length_controlled": 0.7, "kl": kl}
        (job.folder / "frontier.jsonl").write_text(json.dumps(point))
        bounds = (SweepOptions(), SweepOptions(max_kl=None), SweepOptions("win_rate"))
        values.append([replace(job, options=options).result() for options in bounds])
    assert values == [[0.7, 0.7, 0.8], pytest.approx([-0.2, 0.7, -0.2])]


@pytest.mark.parametrize(
    "other",
    [
        JobProcess(Path("0"), ["loss.beta=0.2"]),
        JobProcess(Path("0"), ["loss.beta=0.1"], settings="seed: 3"),
    ],
)
def test_a_failed_job_is_unfinished_whatever_another_has_left_in_its_folder(
    job: JobProcess, other: JobProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    job.result()
    (job.folder / "summary.json").write_text(json.dumps({"val": {"loss": 0.5}}))
    (job.folder.parent / ".failed").unlink()
    assert math.isnan(replace(other, folder=job.folder).result())
    assert "holds another job. Name another run_dir" in capsys.readouterr().err
    assert unfinished_jobs(job.folder.parent) == ["0"]


@pytest.mark.parametrize("junk", ["[1]", '{"overrides": 5}', "", "{", None])
def test_junk_in_a_job_s_file_is_a_failed_job(job: JobProcess, junk: str | None) -> None:
    job.folder.mkdir()
    if junk is None:
        (job.folder / "job.json").mkdir()
    else:
        (job.folder / "job.json").write_text(junk)
    assert math.isnan(job.result())
    assert unfinished_jobs(job.folder.parent) == ["0"]


@pytest.mark.parametrize("junk", ["[1]", '{"val": {"loss": "low"}}', '{"val": 3}', "", "{}"])
def test_a_summary_without_a_loss_is_that_of_a_job_to_be_run(job: JobProcess, junk: str) -> None:
    job.folder.mkdir()
    (job.folder / "summary.json").write_text(junk)
    assert math.isnan(job.result())
    assert unfinished_jobs(job.folder.parent) == ["0"]


def test_a_sweep_ends_with_one_and_its_unfinished_jobs_or_with_what_stopped_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_sweep(tmp_path / "all done", lambda: None) == 0
    failing = JobProcess(tmp_path / "some" / "10", ["seed=1"])
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
    before = signal.getsignal(signal.SIGINT)
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
    assert signal.getsignal(signal.SIGINT) is before
