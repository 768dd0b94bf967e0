"""Flags may stand anywhere, and what is wrong is told by name under every one of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from minimind_dpo import train
from minimind_dpo.config.command_line import check_jobs, read_command_line
from minimind_dpo.config.compose import compose
from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError, Problem


@pytest.mark.parametrize(
    ("typed", "overrides", "flags"),
    [
        ("-m a=1 b=2", ["a=1", "b=2"], ["-m"]),
        ("a=1,2 -m b=2", ["a=1,2", "b=2"], ["-m"]),
        ("a=1 --cfg job b=2 --package loss", ["a=1", "b=2"], ["--cfg", "job", "--package", "loss"]),
        ("a=1 --config-dir=mine", ["a=1"], ["--config-dir=mine"]),
        ("~a +b=-1", ["~a", "+b=-1"], []),
    ],
)
def test_flags_are_told_from_overrides_wherever_they_stand(
    typed: str, overrides: list[str], flags: list[str]
) -> None:
    line = read_command_line(typed.split())
    assert (list(line.overrides), list(line.flags)) == (overrides, flags)
    assert line.multirun == ("-m" in flags)
    assert line.shows == ("--cfg" in flags)


WRONG = [
    ("loss.bta=1", "loss.bta=1: there is no such key. Did you mean loss.beta?"),
    ("loss.beta=abc", "loss.beta=abc: Value 'abc'"),
    ("loss.beta={", "loss.beta={: cannot be read (no viable alternative at input '{')"),
    ("loss.beta", "loss.beta: cannot be read (missing EQUAL at '<EOF>')"),
    ("=1", "=1 names no key"),
    ("logger=tensorbord", "logger=tensorbord: there is no such file. Available options"),
    ("--multirn", "--multirn: there is no such flag. Did you mean --multirun?"),
]


@pytest.mark.parametrize("flags", ["", "-m", "--cfg job"])
@pytest.mark.parametrize(("argument", "message"), WRONG)
@pytest.mark.parametrize("behind", [True, False])
def test_wrong_arguments_end_with_two_and_their_name_under_every_flag(
    argument: str,
    message: str,
    flags: str,
    behind: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [argument, *flags.split()] if behind else [*flags.split(), argument]
    monkeypatch.setattr("sys.argv", ["minimind-dpo", *words])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_value_of_a_sweep_is_composed_before_its_first_job() -> None:
    with pytest.raises(ConfigError) as caught:
        check_jobs(["loss.beta=0.1,abc", "seed=1,x,2", "trainer.max_epochs=range(1,4)"])
    told = str(caught.value)
    assert len(caught.value.problems) == 2
    assert "Value 'abc'" in told
    assert "Value 'x'" in told
    check_jobs(["loss.beta=choice(0.1,0.2)", "logger=glob(*)", "+sweep=beta"])


def test_a_sweep_is_refused_where_none_of_its_jobs_can_run() -> None:
    tried = []

    def check(config: object) -> None:
        tried.append(config.loss.beta)  # type: ignore[attr-defined]
        if config.loss.beta < 0:  # type: ignore[attr-defined]
            raise ConfigError([])

    check_jobs(["loss.beta=-1,0.1,-2"], check)
    assert tried == [-1, 0.1]
    with pytest.raises(ConfigError):
        check_jobs(["loss.beta=-1,-2"], check)
    tried.clear()
    check_jobs(["+sweep=beta"], check)
    assert tried == [0.05]
    # The middle of what a search draws from: its ends may never be drawn.
    check_jobs(["loss.beta=interval(-1,3)"], check)
    assert tried[-1] == 1.0


def test_a_large_sweep_is_refused_for_what_all_of_its_jobs_share_alone() -> None:
    def check(config: Config) -> None:
        wrong = [key for key in ("path", "tokenizer") if getattr(config.model, key) == "bad"]
        problems = [Problem(f"model.{key}", "is bad") for key in wrong]
        if config.loss.beta < 0:
            problems.append(Problem("loss.beta", "is negative", value=config.loss.beta))
        if problems:
            raise ConfigError(problems)

    seeds = "seed=range(0,17)"
    check_jobs(["model.path=bad,good", seeds], check)
    check_jobs(["loss.beta=-1,0.1,-2", "model.path=bad,good", "seed=range(0,40)"], check)
    # None of the jobs that are tried can run, each for another reason: one of the rest may.
    check_jobs([f"loss.beta={','.join(map(str, range(-17, 2)))},-1"], check)
    with pytest.raises(ConfigError) as caught:
        check_jobs(["model.path=bad", "model.tokenizer=bad,good", seeds], check)
    assert [problem.key for problem in caught.value.problems] == ["model.path"]
    # Small enough to try all of it: what neither end can be, what lies between them can.
    check_jobs(["loss.beta=-3,1,-2"], check)
    with pytest.raises(ConfigError):
        check_jobs(["loss.beta=range(-3,0)"], check)


def test_whole_numbers_that_a_search_draws_are_tried_with_a_whole_number() -> None:
    tried = []
    check_jobs(
        ["data.batch_size=int(interval(1,8))"], lambda config: tried.append(config.data.batch_size)
    )
    assert tried == [4]


def test_of_a_long_sweep_a_few_values_are_composed(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []

    def count(job: Sequence[str]) -> Config:
        composed.append(list(job))
        return compose(job)

    monkeypatch.setattr("minimind_dpo.config.command_line.compose", count)
    check_jobs(["seed=range(0,500)"])
    assert composed == [["seed=0"], ["seed=499"]]
    composed.clear()
    check_jobs([f"seed={','.join(map(str, range(500)))}"])
    assert len(composed) == 16
    assert composed[-1] == ["seed=499"]


def test_modes_that_exclude_each_other_are_named() -> None:
    with pytest.raises(ConfigError, match="--cfg: does not go with --multirun"):
        read_command_line(["-m", "--cfg", "job"])


def test_a_reader_that_stops_reading_ends_help_without_a_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "minimind_dpo.train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (141, b"")
