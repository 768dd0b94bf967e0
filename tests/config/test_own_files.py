"""A user's own files run as they say: folders of groups, files of settings, a run's own config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import minimind_dpo.run.fit
from minimind_dpo import train
from minimind_dpo.config.command_line import completed, read_command_line
from minimind_dpo.config.compose import compose, to_yaml
from minimind_dpo.config.schema import Config
from minimind_dpo.config.source import Source
from minimind_dpo.options.problem import ConfigError


@pytest.fixture
def runs(files: list[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """What a command line would train, in a folder with `model` and `data` of its own."""
    ran: list[Config] = []
    monkeypatch.setattr(train, "check", lambda *_, **__: None)
    monkeypatch.setattr(
        minimind_dpo.run.fit, "fit_from_command_line", lambda config: ran.append(config) or 0
    )

    def run(*words: str) -> Config:
        monkeypatch.setattr("sys.argv", ["minimind-dpo", *words])
        with pytest.raises(SystemExit) as ended:
            train.main()
        assert ended.value.code == 0
        return ran.pop()

    return run


SETTINGS = """
model: {path: mine.pth, config: {num_attention_heads: 4}}
data: {train: [a.jsonl, b.jsonl]}
optim: {lr: 1e-6}
logger: csv
"""


def test_a_file_of_settings_is_trained_with_by_each_flag_that_names_it(
    runs: Callable[..., Config],
) -> None:
    Path("own").mkdir()
    Path("own/plain.yaml").write_text(SETTINGS)
    expected = compose(
        [
            "model.path=mine.pth",
            "model.config.num_attention_heads=4",
            "data.train=[a.jsonl,b.jsonl]",
            "optim.lr=1e-6",
            "logger=csv",
        ]
    )
    for flags in (
        ["--config", "own/plain.yaml"],
        ["--config=own/plain.yaml"],
        ["--config-dir", "own", "--config-name", "plain"],
        ["-cd", "own", "-cn", "plain.yaml"],
    ):
        assert runs(*flags) == expected
    # The command line goes over the file, a group that it chooses over what the file has of it.
    over = runs("--config", "own/plain.yaml", "optim.lr=3e-6", "logger=none")
    assert (over.optim.lr, over.logger.name, over.loss.beta) == (3e-6, "none", 0.1)


def test_a_file_of_settings_goes_over_the_experiment_it_builds_on(
    runs: Callable[..., Config],
) -> None:
    Path("mine.yaml").write_text("experiment: minimind3\nname: mine\noptim: {lr: 2e-6}\n")
    shipped = compose(["experiment=minimind3"])
    mine = runs("--config", "mine.yaml")
    assert (mine.name, mine.optim.lr) == ("mine", 2e-6)
    assert mine.data == shipped.data
    # A defaults list as Hydra's own configurations have one says the same.
    Path("mine.yaml").write_text(
        "defaults: [config, {experiment: minimind3}, _self_]\nname: mine\noptim: {lr: 2e-6}\n"
    )
    assert runs("--config", "mine.yaml") == mine


def test_a_folder_of_the_user_s_own_adds_files_to_the_groups(runs: Callable[..., Config]) -> None:
    Path("my own/experiment").mkdir(parents=True)
    Path("my own/experiment/mine.yaml").write_text("# @package _global_\noptim: {lr: 2e-6}\n")
    assert runs("--config-dir", "my own", "experiment=mine").optim.lr == 2e-6
    assert runs("--config-dir", "my own", "experiment=[hf,mine]").optim.lr == 2e-6
    with pytest.raises(SystemExit) as shown:
        train_main("--config-dir", "my own", "experiment=mine", "--cfg", "job")
    assert shown.value.code == 0


def test_a_key_of_another_version_in_a_run_s_settings_is_told_with_its_file(
    tmp_path: Path,
) -> None:
    settings = to_yaml(compose(["experiment=demo"])).replace(
        "guard:\n", "guard:\n  stop_grace: 5\n"
    )
    (tmp_path / "config.yaml").write_text(settings)
    source = Source(file=tmp_path / "config.yaml", resumed=tmp_path)
    with pytest.raises(ConfigError) as error:
        compose([], source)
    assert str(error.value.problems[0]) == (
        f"guard.stop_grace: is no key of this version (in {tmp_path / 'config.yaml'}). Another "
        "version wrote it: take the key out of that file, and repeat the command."
    )


def train_main(*words: str) -> None:
    import sys

    sys.argv = ["minimind-dpo", *words]
    train.main()


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("loss: {bta: 1}", "--config mine.yaml", "loss.bta: there is no such key (in {0}). Did"),
        ("lss: {beta: 1}", "--config mine.yaml", "lss: there is no such key (in {0})."),
        ("loss: {beta: x}", "--config mine.yaml", "loss.beta: Value 'x' of type 'str'"),
        ("experiment: mnimind3", "--config mine.yaml", "Did you mean minimind3?"),
        ("a: [", "--config mine.yaml", "mine.yaml: cannot be read (while parsing"),
        ("- 1", "--config mine.yaml", "mine.yaml: is no file of settings"),
        ("loss: 3", "--config mine.yaml", "mine.yaml: Merge error: int is not"),
        ("", "--config mnie.yaml", "--config=mnie.yaml: is no file."),
        ("", "--config-dir . --config-name mnie", "Did you mean mine?"),
        ("", "--config-dir nowhere", "--config-dir=nowhere: is no folder."),
        ("", "--config-path .", "--config-path=.: is no folder with a config.yaml."),
        ("", "--config mine.yaml --config-name mine", "--config: does not go with --config-name."),
        ("", "--config-dir . experiment=mnimind3", "Did you mean minimind3?"),
        ("", "--config", "expected one argument"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_as_everywhere(
    content: str,
    flags: str,
    message: str,
    files: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mine = Path("mine.yaml").absolute()
    mine.write_text(content)
    before = sorted(Path().iterdir())
    monkeypatch.setattr("sys.argv", ["minimind-dpo", *flags.split()])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2
    assert message.format(mine) in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_an_experiment_without_its_package_line_is_told_of_it(files: list[str]) -> None:
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("optim: {lr: 2e-6}\n")
    line = read_command_line(["--config-dir", "own", "experiment=mine"])
    with pytest.raises(ConfigError, match="Let its first line be: # @package _global_"):
        compose(line.overrides, line.source)


def finished_run(folder: Path, *overrides: str) -> Config:
    """A run's folder as far as its configuration goes."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000003.ckpt").touch()
    config = compose(["experiment=hf", "model.path=m.pth", "data.train=d.jsonl", *overrides])
    (folder / "config.yaml").write_text(to_yaml(config))
    return config


def test_a_run_that_is_resumed_alone_keeps_its_own_settings(runs: Callable[..., Config]) -> None:
    before = finished_run(Path("runs/a b"), "run_dir='runs/a b'", "optim.lr=7e-7", "logger=csv")
    before.run_dir = None
    for words in (
        ["resume='runs/a b'"],
        ["resume='runs/a b/checkpoints'"],
        ["resume='runs/a b/checkpoints/step-00000003.ckpt'"],
    ):
        after = runs(*words)
        after.resume = None
        assert after == before
    after = runs("resume=auto", "run_dir='runs/a b'", "trainer.max_epochs=3", "logger=none")
    assert (after.optim.lr, after.trainer.max_epochs, after.logger.name) == (7e-7, 3, "none")
    assert after.run_dir == "runs/a b"
    # Settings that are named belong to the command line, as ever.
    assert runs("resume='runs/a b'", "experiment=hf", "model.path=x").optim.lr != 7e-7


def test_a_state_without_a_run_is_not_resumed_with_the_demo(files: list[str]) -> None:
    Path("step-00000003.ckpt").touch()
    with pytest.raises(ConfigError, match="has no run's config"):
        completed(read_command_line(["resume=step-00000003.ckpt"]))


@pytest.mark.parametrize(
    "words",
    [
        ["model.path=x"],
        ["++data.train=x"],
        ["experiment=hf"],
        ["+experiment=hf"],
        ["model=mine"],
        ["data=mine"],
        ["--config-dir", "."],
        ["--config", "mine.yaml"],
        ["loss.beta=1", "data.train=[a,b]"],
        ["--cfg", "job"],
        ["--help"],
    ],
)
def test_the_demo_is_not_added_where_something_is_named_or_shown(
    words: list[str], files: list[str]
) -> None:
    Path("mine.yaml").touch()
    line = read_command_line(words)
    assert completed(line) == line


@pytest.mark.parametrize(
    "words",
    [[], ["loss.beta=0.2"], ["-m", "+sweep=beta"], ["data.val=x"], ["model.dtype=float64"]],
)
def test_the_demo_is_added_where_nothing_is_named(words: list[str]) -> None:
    assert completed(read_command_line(words)).overrides[-1] == "experiment=demo"


def test_a_sweep_gives_its_jobs_the_files_of_the_user(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minimind_dpo.run import sweep

    commands: list[list[str]] = []

    class Started:
        def __init__(self, command: list[str], **_: Any) -> None:
            commands.append(command[3:])

        def wait(self) -> int:
            job = Path("swept") / str(len(commands) - 1)
            (job / "summary.json").write_text(json.dumps({"val": {"loss": 0.5}}))
            return 0

    monkeypatch.setattr(sweep.subprocess, "Popen", Started)
    monkeypatch.setattr(train, "check", lambda *_, **__: None)
    Path("own/experiment").mkdir(parents=True)
    Path("own/experiment/mine.yaml").write_text("# @package _global_\noptim: {lr: 2e-6}\n")
    Path("mine.yaml").write_text("name: mine\n")
    words = ["--config-dir", "own", "--config", "mine.yaml", "experiment=mine"]
    with pytest.raises(SystemExit) as ended:
        train_main("-m", *words, "loss.beta=0.1,0.2", "run_dir=swept")
    assert ended.value.code == 0
    jobs = [read_command_line(command) for command in commands]
    configs = [compose(job.overrides, job.source) for job in jobs]
    assert [config.loss.beta for config in configs] == [0.1, 0.2]
    assert {(config.name, config.optim.lr) for config in configs} == {("mine", 2e-6)}
    assert [config.run_dir for config in configs] == [
        str(Path("swept", number).absolute()) for number in "01"
    ]
