"""What a job of a sweep is started with, and what is read back from it."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from minimind_dpo.config.compose import compose
from minimind_dpo.run.sweep import (
    Jobs,
    clean_environment,
    device_slots,
    objective,
    quoted,
    sweep_failures,
)
from minimind_dpo.training.signals import Stopped, StopRequest


def test_a_job_is_no_rank_of_the_process_that_starts_it() -> None:
    ranks = dict.fromkeys(
        ["RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"], "1"
    )
    others = dict.fromkeys(["PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS"], "1")
    own = {"MINIMIND_DPO_RUN": "[]", "MINIMIND_DPO_LAUNCHER": "1"}
    kept = {"PATH": "/bin", "HF_ENDPOINT": "https://mirror", "CUDA_VISIBLE_DEVICES": "0"}
    assert clean_environment({**ranks, **others, **own, **kept}) == kept


@pytest.mark.parametrize("name", ["plain", "with space", "a=b,c", "it's", "back\\slash", "{x}[y]"])
def test_any_folder_can_be_given_as_an_override(name: str) -> None:
    assert compose(["experiment=demo", f"run_dir={quoted(name)}"]).run_dir == name


def test_jobs_at_a_time_get_devices_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_slots(3, 1) == [None, None, None]  # no GPU here
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_slots(1, 2) == [None]
    assert device_slots(4, 1) == ["0", "1", "2", "3"]
    assert device_slots(2, 2) == ["0,1", "2,3"]
    # Fewer devices than jobs: they share.
    assert device_slots(3, 2) == ["0,1", "2,3", "0,1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_slots(4, 1) == ["5", "7", "5", "7"]


def test_a_job_that_is_done_is_not_run_again_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "0"
    job.mkdir()
    (job / "job.json").write_text(json.dumps({"overrides": ["loss.beta=0.1"]}))
    assert sweep_failures(tmp_path) == ["0"]
    (job / "summary.json").write_text(json.dumps({"val": {"loss": 0.5}, "train": {"loss": 0.4}}))
    assert Jobs().run(job, ["loss.beta=0.1"]) == 0.5
    assert math.isnan(Jobs().run(job, ["loss.beta=0.2"]))
    assert "name=NAME" in capsys.readouterr().err
    assert sweep_failures(tmp_path) == []
    (job / "summary.json").write_text(json.dumps({"val": {}, "train": {"loss": 0.4}}))
    assert objective(job) == 0.4


class OneRank:
    world_size = 1


def test_a_signal_is_a_request_while_training_and_an_end_before_it() -> None:
    trainer: Any = OneRank()
    request = StopRequest()
    request.install()
    try:
        with pytest.raises(Stopped, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        request.signum, request.patient = 0, True
        assert not request.agreed(trainer)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.agreed(trainer)
        assert request.stopped(trainer).exit_code == 143
        request.signum = 0
        os.kill(os.getpid(), signal.SIGINT)
        assert request.stopped(trainer).exit_code == 130
    finally:
        request.restore()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
