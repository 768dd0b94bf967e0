"""Ranks, worlds and jobs are told alike by the command line, by Lightning and by its launchers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from minimind_dpo import launch, train
from minimind_dpo.config.compose import compose
from minimind_dpo.options.limits import limit_problems
from minimind_dpo.options.problem import ConfigError
from minimind_dpo.run.plan import world_size
from minimind_dpo.training.distributed import make_strategy

JOB = {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
SHELL = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "interactive"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}
LIGHTNING = {"WORLD_SIZE": "4", "LOCAL_RANK": "2", "NODE_RANK": "0"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Of no launcher."""
    for name in set(os.environ) - set(launch.job_environment()):
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "rank", "local_rank", "world", "job"),
    [
        ({}, 0, 0, None, None),
        (LIGHTNING, 2, 2, None, None),
        ({"NODE_RANK": "1"}, 1, 0, None, None),
        (TORCHRUN, 5, 1, 8, None),
        ({**JOB, "SLURM_JOB_NAME": "dpo"}, 3, 1, 4, "77"),
        ({**JOB, **TORCHRUN}, 5, 1, 8, "77"),
        ({**JOB, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "2"}, 3, 1, 4, "70_2"),
        # In a shell that was opened in a job, Lightning starts the ranks.
        (SHELL, 0, 0, None, None),
        ({**SHELL, **LIGHTNING}, 2, 2, None, None),
        ({**SHELL, "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "3"}, 3, 3, None, None),
    ],
)
def test_a_process_knows_its_place_from_its_launcher(
    variables: dict[str, str],
    rank: int,
    local_rank: int,
    world: int | None,
    job: str | None,
    environment: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    launch.check_environment()
    assert (launch.rank(), launch.local_rank()) == (rank, local_rank)
    assert (launch.world_size(), launch.scheduler_job()) == (world, job)
    assert launch.started_by_srun() == SLURMEnvironment.detect()


def test_what_torchrun_sets_is_set_together(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("TORCHELASTIC_RUN_ID", "none")
    environment.setenv("RANK", "0")
    with pytest.raises(ConfigError) as caught:
        launch.check_environment()
    assert [problem.key for problem in caught.value.problems] == ["LOCAL_RANK", "WORLD_SIZE"]


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no current folder")
def test_a_current_folder_that_was_deleted_is_named(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    environment.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="the current folder: was deleted"):
        launch.check_environment()


def test_a_rank_beyond_the_number_of_ranks_is_refused(environment: pytest.MonkeyPatch) -> None:
    for name, value in {**TORCHRUN, "RANK": "8"}.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match="RANK=8: in the environment must be below WORLD_SIZE=8"):
        launch.check_environment()


def test_a_rank_of_one_process_is_the_first_or_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("RANK", "0")
    launch.check_environment()
    environment.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="RANK=1: in the environment must be below WORLD_SIZE=1"):
        launch.check_environment()


@pytest.mark.parametrize("text", ["", "abc", "-1", "1.5", "2(x3)"])
def test_variables_that_are_no_numbers_are_named(
    text: str, environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SLURM_NTASKS", "RANK", "SLURM_RESTART_COUNT"):
        environment.setenv(name, text)
    environment.setattr("sys.argv", ["minimind-dpo", "experiment=demo"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "3 problems" in told
    assert f"SLURM_NTASKS={text}: in the environment must be a whole number." in told


def test_only_a_rank_that_this_run_started_leaves_models_to_the_one_before_it(
    environment: pytest.MonkeyPatch,
) -> None:
    environment.setenv("MINIMIND_DPO_LAUNCHER", str(os.getppid()))
    assert not launch.launched_by_rank()
    environment.setenv("LOCAL_RANK", "1")
    assert launch.launched_by_rank()
    environment.setenv("MINIMIND_DPO_LAUNCHER", "1")  # torchrun's, in the shell of another run
    assert not launch.launched_by_rank()


def test_a_job_of_a_sweep_is_no_rank_of_the_process_that_starts_it(
    environment: pytest.MonkeyPatch,
) -> None:
    before = dict(os.environ)
    for name in (*TORCHRUN, *JOB, *LIGHTNING, "MASTER_ADDR", "PL_GLOBAL_SEED", "MINIMIND_DPO_RUN"):
        environment.setenv(name, "1")
    environment.setenv("HF_ENDPOINT", "https://mirror")
    assert launch.job_environment() == {
        **before,
        "HF_ENDPOINT": "https://mirror",
        "MINIMIND_DPO_SWEEP": str(os.getpid()),
    }


@pytest.mark.skipif(os.name == "nt", reason="parents are not told so on Windows")
def test_a_job_ends_with_the_process_that_started_it() -> None:
    job = "import time; from minimind_dpo import launch; launch.end_with_sweep(); time.sleep(60)"
    sweep = (
        "import subprocess, sys, time; from minimind_dpo import launch\n"
        f"job = subprocess.Popen([sys.executable, '-c', {job!r}], env=launch.job_environment())\n"
        "print(job.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", sweep], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        time.sleep(1)
        os.kill(pid, 0)
        process.kill()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the job is still there")


def test_cuda_s_allocator_extends_its_blocks_unless_the_user_has_set_it_up(
    environment: pytest.MonkeyPatch,
) -> None:
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    environment.setattr(launch.sys, "platform", "linux")
    for given in (None, *names):
        for name in names:
            environment.delenv(name, raising=False)
        if given:
            environment.setenv(given, "max_split_size_mb:64")
        launch.let_memory_grow()
        expected = (
            {given: "max_split_size_mb:64"} if given else {names[0]: "expandable_segments:True"}
        )
        assert {name: os.environ[name] for name in names if name in os.environ} == expected
    environment.delenv(names[1], raising=False)


@pytest.mark.parametrize(
    ("devices", "count"), [("'0,2'", 2), ("'1,'", 1), ("2", 2), ("[0,1]", 2), ("1", 1), ("auto", 1)]
)
def test_devices_that_pass_the_checks_make_a_strategy(
    devices: str, count: int, environment: pytest.MonkeyPatch
) -> None:
    config = compose(["experiment=demo", f"trainer.devices={devices}"])
    assert not list(limit_problems(config.trainer))
    assert world_size(config) == count
    strategy = make_strategy("auto", world_size(config), 60)
    assert isinstance(strategy, DDPStrategy) == (count > 1)
