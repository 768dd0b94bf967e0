"""Flags may stand anywhere, and what is wrong is told by name under every one of them."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minimind_dpo import __version__, launch, train
from minimind_dpo.config.command_line import read_command_line
from minimind_dpo.config.compose import compose
from minimind_dpo.config.jobs import Grid, check_jobs, for_search, for_sweep
from minimind_dpo.config.schema import Config
from minimind_dpo.options.problem import ConfigError


@pytest.mark.parametrize(
    ("typed", "overrides", "flags"),
    [
        ("-m a=1 b=2", ["a=1", "b=2"], ["--multirun"]),
        ("a=1,2 -m b=2", ["a=1,2", "b=2"], ["--multirun"]),
        ("a=1 --cfg job b=2 -p loss", ["a=1", "b=2"], ["--cfg", "job", "--package", "loss"]),
        ("a=1 --info", ["a=1"], ["--info", "all"]),
        ("~a +b=-1", ["~a", "+b=-1"], []),
        ("a=1 --config-dir=.", ["a=1", "hydra.searchpath=['file://{here}']"], []),
    ],
)
def test_flags_are_told_from_overrides_wherever_they_stand(
    typed: str, overrides: list[str], flags: list[str]
) -> None:
    line = read_command_line(typed.split())
    assert list(line.overrides) == [text.format(here=Path.cwd()) for text in overrides]
    assert list(line.flags) == flags
    assert line.multirun == ("--multirun" in flags)
    assert bool(line.shows) == bool({"--cfg", "--info"} & set(flags))


WRONG = [
    ("loss.bta=1", "loss.bta=1: there is no such key. Did you mean loss.beta?"),
    ("loss.beta=abc", "loss.beta=abc: Value 'abc'"),
    ("loss.beta={", "loss.beta={: cannot be read (no viable alternative at input '{')"),
    ("loss.beta", "loss.beta: cannot be read (missing EQUAL at '<EOF>')"),
    ("=1", "=1 names no key"),
    ("logger=tensorbord", "logger=tensorbord: there is no such file. Available options"),
    ("--multirn", "--multirn: there is no such flag. Did you mean --multirun?"),
    ("--beta=0.2", "--beta: there is no such flag. Write loss.beta=0.2"),
    ("--learning-rate", "--learning-rate: there is no such flag. Write optim.lr=VALUE"),
    ("--bta", "--bta: there is no such flag. Write loss.beta=VALUE"),
]


@pytest.mark.parametrize("words", ["{0}", "{0} -m", "{0} --cfg job", "-m {0}"])
@pytest.mark.parametrize(("argument", "message"), WRONG)
def test_wrong_arguments_end_with_two_and_their_name_under_every_flag(
    argument: str,
    message: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["minimind-dpo", *words.format(argument).split()])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_flag_that_is_a_key_is_told_how_to_write_it() -> None:
    for words in (["--beta", "0.2", "seed=1"], ["seed=1", "--beta", "0.2"]):
        with pytest.raises(ConfigError, match=r"Write loss\.beta=0\.2$"):
            read_command_line(words)
    with pytest.raises(ConfigError, match=r"Write optim\.lr=VALUE$"):
        read_command_line(["--lr", "seed=1"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("+sweep=beta seed=1", "Add -m: python -m minimind_dpo.train -m +sweep=beta"),
        ("hydra/launcher=joblib", "hydra/launcher=joblib: is for several jobs"),
        ("hydra.run.dir=x", "hydra.run.dir=x: is for several jobs"),
        ("--resolve", "--resolve: is for what --cfg prints"),
        ("--package loss", "--package: is for what --cfg prints"),
        ("--experimental-rerun x", "needs files that this program does not write"),
        ("-m resume=runs/a", "resume=runs/a: is for one run. Name its folder: the same command"),
        ("-m run_dir=a,b", "run_dir: cannot be swept"),
        ("-m sweep=beta", "sweep=beta: is chosen with a plus. Write -m +sweep=beta"),
    ],
)
def test_what_would_be_accepted_and_ignored_is_refused(
    typed: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["minimind-dpo", *typed.split()])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--version", f"minimind_dpo {__version__}\n"),
        ("--hydra-help", "== Flags =="),
        ("--hydra-help model.path=x", "== Flags =="),
        ("--help", "trainer.max_epochs"),
        # Without a model these are the defaults of the real job, as --help has them.
        ("--cfg job --package optim", "lr: 5.0e-07"),
        ("--cfg job --package model", "path: ???"),
        ("--info defaults", ""),
    ],
)
def test_what_is_printed_is_of_this_program_and_of_no_run(
    flags: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["minimind-dpo", *flags.split()])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0
    assert text in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("loss.be", ["loss.beta="]),
        ("schedule.name=co", ["schedule.name=cosine", "schedule.name=constant"]),
        ("seed=1 loss.type=sig", ["loss.type=sigmoid", "loss.type=sigmoid_norm"]),
        ("experiment=mini", ["experiment=minimind2", "experiment=minimind3"]),
    ],
)
def test_tab_completes_keys_and_their_values(
    typed: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    line = f"minimind-dpo {typed}"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    monkeypatch.setattr("sys.argv", ["minimind-dpo", "-sc", "query=bash"])
    with contextlib.suppress(SystemExit):  # Hydra ends the program behind what it completes
        train.main()
    assert capfd.readouterr().out.split() == words


def grid(*words: str) -> Grid:
    return Grid.read(for_sweep(read_command_line(["-m", *words])))


def test_every_value_of_a_sweep_is_composed_before_its_first_job() -> None:
    with pytest.raises(ConfigError) as caught:
        check_jobs(grid("loss.beta=0.1,abc", "seed=1,x,2", "trainer.max_epochs=range(1,4)"))
    assert [str(problem).split(":")[0] for problem in caught.value.problems] == [
        "loss.beta=abc",
        "seed=x",
    ]
    check_jobs(grid("loss.beta=choice(0.1,0.2)", "logger=glob(*)", "+sweep=beta"))
    # Of many values, some: each takes a tenth of a second.
    assert [len(values) for values in grid("seed=range(0,500)").axes] == [16]


def test_a_sweep_whose_folder_cannot_be_made_is_refused_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "dpo.jsonl").touch()
    with pytest.raises(ConfigError, match=r"run_dir=.*cannot be made, since .*dpo\.jsonl is not"):
        check_jobs(grid("loss.beta=0.1,0.2", f"run_dir='{tmp_path / 'dpo.jsonl'}'"))


def test_a_sweep_is_refused_where_its_first_job_cannot_run() -> None:
    tried: list[float] = []

    def check(config: Config) -> None:
        tried.append(config.loss.beta)
        if config.loss.beta < 0:
            raise ConfigError([])

    check_jobs(grid("loss.beta=0.1,-1"), check=check)
    with pytest.raises(ConfigError):
        check_jobs(grid("loss.beta=-1,0.1"), check=check)
    check_jobs(grid("+sweep=beta"), check=check)
    # A search draws from between two ends, and may never draw these.
    check_jobs(grid("loss.beta=interval(-1,3)"), check=check)
    assert tried == [0.1, -1, 0.05, 1.0]
    batches: list[int] = []
    whole = grid("data.batch_size=int(interval(1,8))")
    check_jobs(whole, check=lambda config: batches.append(config.data.batch_size))
    assert batches == [4]


def test_the_first_job_of_a_sweep_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = grid("loss.beta=0.1,0.2", "seed=1,2,3")
    composed: list[list[str]] = []

    def count(overrides: list[str], source: Any) -> Config:
        composed.append(overrides)
        return compose(overrides, source)

    monkeypatch.setattr("minimind_dpo.config.jobs.compose", count)
    assert check_jobs(sweep).loss.beta == 0.1
    assert len(composed) == 1 + 1 + 2
    assert composed.count(["loss.beta=0.1", "seed=1"]) == 1


def test_a_sweep_has_a_dated_folder_or_the_one_that_is_given() -> None:
    dated = r"outputs/sweeps/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_beta"
    preset = grid("+sweep=beta", "seed=1,2", "loss.type=ipo")
    assert re.fullmatch(dated, preset.folder.as_posix())
    assert preset.keys == {"loss.beta", "seed"}
    assert grid("+sweep=beta", "run_dir='a b'", "resume=auto").folder == Path("a b")
    assert grid("+sweep=beta", "hydra.sweep.dir=c").folder == Path("c")


def test_a_job_of_a_chosen_sweep_is_given_the_sweep_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in launch.job_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert read_command_line(["+sweep=beta", "loss.beta=0.2"]).overrides[0] == "+sweep=beta"


def test_a_search_goes_the_way_in_which_its_objective_is_better() -> None:
    """The sweeper is a plugin's: a grid with its direction stands for it here."""
    line = for_sweep(read_command_line(["-m", "loss.beta=interval(0.1,0.5)"]))
    search = replace(Grid.read(line), direction="minimize")
    objective = check_jobs(search).sweep.objective
    assert for_search(line, search, objective).overrides[-1] == "hydra.sweeper.direction=maximize"
    assert for_search(line, replace(search, direction=""), objective) == line
    given = replace(line, overrides=(*line.overrides, "hydra.sweeper.direction=minimize"))
    with pytest.raises(ConfigError, match=r"wrong way for sweep\.objective=length_controlled"):
        for_search(given, search, objective)
    for overrides, why in (
        (["judge=human"], "judge=human waits for votes"),
        (["data.val=null", "data.val_fraction=0"], "hold out nothing"),
        (["judge=none"], "a number of the verdict"),
    ):
        unjudged = replace(search, axes=(*search.axes, *([text] for text in overrides)))
        with pytest.raises(ConfigError, match=f"sweep.objective=length_controlled: .*{why}"):
            check_jobs(unjudged)
    by_loss = replace(unjudged, axes=(*unjudged.axes, ["sweep.objective=loss"]))
    objective = check_jobs(by_loss).sweep.objective
    assert for_search(line, by_loss, objective).overrides[-1] == "hydra.sweeper.direction=minimize"


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("data.train=偏好.jsonl", ["偏好.jsonl"]),
        ("data.train=[数据/a.jsonl,b.jsonl]", ["数据/a.jsonl", "b.jsonl"]),
        ("data.train='我 的.jsonl'", ["我 的.jsonl"]),
        ('data.train=["甲,乙.jsonl",丙]', ["甲,乙.jsonl", "丙"]),
        ("data.train=né.jsonl", ["né.jsonl"]),
    ],
)
def test_names_in_any_script_need_no_quotes(typed: str, value: list[str]) -> None:
    assert compose(read_command_line([typed]).overrides).data.train == value
    swept = grid("name=甲,乙")
    assert swept.axes[0] == ["name='甲'", "name='乙'"]


@pytest.mark.parametrize(
    "typed",
    [
        f"name={'好' * 79}",
        f"run_dir={'好' * 86}",
        f"output_dir=a/{'b' * 256}/c",
        f"model.path={'a' * 300}",
        f"model.tokenizer={'a' * 300}",
        f"reference.path={'a' * 300}",
        f"data.train={'a' * 300}",
        f"resume={'a' * 300}",
        f"--config={'a' * 300}",
    ],
)
def test_names_that_no_file_system_takes_are_told_in_a_sentence(
    typed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["minimind-dpo", "experiment=demo", typed])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert "Error: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


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
