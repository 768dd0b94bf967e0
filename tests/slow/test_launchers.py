"""torchrun, two nodes, a scheduler that requeues, and sweeps by every launcher."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def module(cli: Any, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m ...` in a session of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cli.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_two_nodes_by_torchrun_with_a_skewed_start_are_one_run(cli: Any, free_port: int) -> None:
    args = [*cli.base, "trainer.devices=1", "trainer.num_nodes=2", "trainer.max_epochs=1"]
    agents = []
    for node in range(2):
        agents.append(
            module(
                cli,
                "torch.distributed.run",
                "--nnodes=2",
                f"--node_rank={node}",
                "--nproc_per_node=1",
                "--master_addr=127.0.0.1",
                f"--master_port={free_port}",
                "-m",
                "minimind_dpo.train",
                *args,
            )
        )
        time.sleep(2.5)  # across a second: a folder named by the clock would be two
    texts = [agent.communicate(timeout=240)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], texts
    (run,) = (cli.folder / "outputs" / "train").iterdir()
    assert json.loads((run / "summary.json").read_text())["pairs_seen"] == 45
    assert cli.session_of(agents[0].pid) == cli.session_of(agents[1].pid) == []
    # The same numbers as one process with the same pairs a step.
    code, text = cli.run("run_dir=one", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=4")
    assert code == 0, text
    one, two = cli.curve("one"), cli.curve(str(run))
    assert {k: float(v) for k, v in two.items() if k[1] == "train/loss"} == pytest.approx(
        {k: float(v) for k, v in one.items() if k[1] == "train/loss"}, rel=1e-5
    )


def test_a_job_whose_time_is_over_is_queued_again_and_goes_on(cli: Any, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text('#!/bin/sh\necho "$@" >> "$CALLS"\n')
    (tools / "scontrol").chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "dpo",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_NTASKS_PER_NODE": "1",
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
    }
    process = cli.start("trainer.max_epochs=4", env=slurm)
    run = cli.folder / "outputs" / "train" / "slurm-77_dpo"
    end = time.monotonic() + 60
    while not list(run.glob("checkpoints/step-*.ckpt")) and time.monotonic() < end:
        time.sleep(0.02)
    process.kill(signal.SIGUSR1)
    assert process.wait() == 143, process.text()
    assert (tmp_path / "calls").read_text() == "requeue 77\n"
    code, text = cli.run("trainer.max_epochs=4", env={**slurm, "SLURM_RESTART_COUNT": "1"})
    assert code == 0, text
    assert "resuming" in text
    code, text = cli.run("trainer.max_epochs=4", "run_dir=whole")
    assert code == 0, text
    assert cli.curve(str(run)) == cli.curve("whole")


def jobs_of(sweep: Path) -> dict[str, dict[str, Any]]:
    """{job: its summary, or nothing if it failed}."""
    found = {}
    for job in sorted(sweep.glob("*/job.json")):
        summary = job.with_name("summary.json")
        found[job.parent.name] = json.loads(summary.read_text()) if summary.exists() else {}
    return found


SHORT = ["trainer.max_epochs=1", "trainer.limit_train_batches=6", "trainer.val_check_interval=1.0"]


def test_a_grid_runs_each_job_once_whatever_its_devices_and_failures(cli: Any) -> None:
    args = ["-m", *SHORT, "run_dir=grid"]
    grid = ["trainer.devices=1,2", "loss.beta=0.1,-1"]
    code, text = cli.run(*args, *grid)
    sweep = cli.folder / "grid"
    jobs = jobs_of(sweep)
    assert code == 1, text
    assert sorted(jobs) == ["0", "1", "2", "3"]
    assert [bool(jobs[n]) for n in "0123"] == [True, False, True, False]
    assert "Unfinished jobs of grid: 1, 3. The same command with run_dir=grid" in text
    assert "loss.beta=-1.0: must be above 0" in text
    assert not (sweep / "0" / "output.txt").exists()  # it went to the terminal
    # Two ranks see twice the pairs of one, each of them once.
    assert (jobs["0"]["pairs_seen"], jobs["2"]["pairs_seen"]) == (12, 24)
    assert not list((cli.folder / "outputs").glob("[!c]*"))  # the cache alone
    # The same again runs only what failed.
    code, text = cli.run(*args, *grid)
    assert code == 1
    assert text.count("was done before") == 2
    # Other jobs do not mix with these.
    code, text = cli.run(*args, "loss.beta=0.2")
    assert code == 1
    assert "holds another job" in text
    assert jobs_of(sweep)["0"] == jobs["0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_s_jobs_end_with_it_however_it_ends(cli: Any, number: signal.Signals) -> None:
    args = ["-m", "trainer.max_epochs=30", "run_dir=stopped", "loss.beta=0.1,0.2"]
    process = cli.start(*args)
    sweep = cli.folder / "stopped"
    end = time.monotonic() + 120
    while not list(sweep.glob("0/checkpoints/step-*.ckpt")) and time.monotonic() < end:
        time.sleep(0.05)
    process.kill(number)
    assert process.wait() == (143 if number == signal.SIGTERM else -number), process.text()
    assert process.survivors() == []
    assert list(jobs_of(sweep)) == ["0"]
    # The job has saved where it stood, and only the sweep says how it goes on.
    text = process.text()
    assert "The run was stopped by SIGTERM. Everything up to step" in text
    if number == signal.SIGTERM:
        assert "Continue it" not in text
        assert "Unfinished jobs of stopped: 0. The same command with run_dir=stopped" in text


def test_sweeps_of_one_name_have_folders_of_their_own(cli: Any) -> None:
    for _ in range(2):
        code, text = cli.run("-m", *SHORT, "loss.beta=0.1")
        assert code == 0, text
        time.sleep(1)
    sweeps = list((cli.folder / "outputs" / "sweeps").iterdir())
    assert len(sweeps) == 2
    assert all(jobs_of(sweep)["0"] for sweep in sweeps)


@pytest.mark.parametrize("launcher", ["optuna", "joblib", "submitit_local"])
def test_other_launchers_and_search_run_each_job_once(cli: Any, launcher: str) -> None:
    plugin = {"optuna": "hydra_optuna_sweeper", "joblib": "hydra_joblib_launcher"}.get(
        launcher, "hydra_submitit_launcher"
    )
    # Looking for a part of a package that is not there is an error to Python.
    there = importlib.util.find_spec("hydra_plugins") is not None
    if not there or importlib.util.find_spec(f"hydra_plugins.{plugin}") is None:
        pytest.skip(f"needs the extra `sweep`: {plugin} is not installed")
    choice = {
        "optuna": [
            "hydra/sweeper=optuna",
            "hydra.sweeper.n_trials=2",
            "hydra.sweeper.sampler.seed=1",
            "loss.beta=interval(0.1,0.5)",
            "trainer.devices=2",
        ],
        "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "loss.beta=0.1,-1,0.2"],
        "submitit_local": ["hydra/launcher=submitit_local", "loss.beta=0.1,0.2"],
    }[launcher]
    process = module(
        cli, "minimind_dpo.train", "-m", *cli.base, *SHORT, f"run_dir={launcher}", *choice
    )
    text, _ = process.communicate(timeout=400)
    jobs = jobs_of(cli.folder / launcher)
    assert process.returncode == (1 if launcher == "joblib" else 0), text
    assert [bool(job) for job in jobs.values()] == {
        "optuna": [True, True],
        "joblib": [True, False, True],
        "submitit_local": [True, True],
    }[launcher], text
    end = time.monotonic() + 10  # joblib ends its own helper a moment later
    while cli.session_of(process.pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert cli.session_of(process.pid) == []


def test_all_ranks_of_srun_are_told_of_a_folder_in_use(cli: Any, free_port: int) -> None:
    args = ["trainer.devices=2", "trainer.max_epochs=300", "run_dir=run"]
    first = cli.start("trainer.max_epochs=300", "run_dir=run")
    cli.wait_for_steps("run", 1, first)
    job = {
        "SLURM_JOB_ID": "78",
        "SLURM_JOB_NAME": "dpo",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "MASTER_PORT": str(free_port),
    }
    ranks = [
        cli.start(*args, "resume=auto", env={**job, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    assert [rank.wait() for rank in ranks] == [2, 2], ranks[0].text()
    for rank in ranks:
        assert f"run_dir=run: is in use by process {first.pid} on" in rank.text()
    first.kill(signal.SIGTERM)
    assert first.wait() == 143
