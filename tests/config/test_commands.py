"""Commands beside training: their own keys, the configuration beside them, and what is refused."""

from __future__ import annotations

import importlib
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from minimind_dpo import evaluate
from minimind_dpo.chat import ChatKeys
from minimind_dpo.config.commands import check, read_command, run_folder
from minimind_dpo.config.compose import compose, to_yaml
from minimind_dpo.config.schema import Config, schema_keys
from minimind_dpo.config.source import CONF_DIR
from minimind_dpo.evaluate import EvaluateKeys
from minimind_dpo.export import ExportKeys
from minimind_dpo.options.problem import ConfigError

COMMANDS = {"chat": ChatKeys, "evaluate": EvaluateKeys, "export": ExportKeys}


def keys(*arguments: str) -> Any:
    return read_command(arguments, "export", ExportKeys, ("name",), "usage")


def configured(*arguments: str) -> Config:
    command = keys(*arguments)
    return command.config(run_folder(command.own.run) if command.own.run else None)


def refused(*arguments: str) -> str:
    with pytest.raises(ConfigError) as error:
        configured(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_file_of_a_command_has_its_keys_and_their_defaults(name: str) -> None:
    own = COMMANDS[name]()
    in_file = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "commands" / f"{name}.yaml"))
    assert in_file == {item.name: getattr(own, item.name) for item in fields(own)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_key_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"minimind_dpo.{name}")
    with pytest.raises(SystemExit) as end:
        module.run(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m minimind_dpo.{name}" in shown
    for item in fields(COMMANDS[name]):
        assert f"\n{item.name}: " in shown


def test_own_keys_are_taken_out_and_several_values_are_a_list() -> None:
    command = keys("run=RUN", "format=hf,gguf", "seed=3")
    assert (command.own.run, command.own.format) == ("RUN", ["hf", "gguf"])
    assert command.line.overrides == ("seed=3",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runn=a"], "runn=a: there is no such key. Did you mean run?"),
        (["formatt=hf"], "formatt=hf: there is no such key. Did you mean format?"),
        (["format=gguff"], "format=gguff: must be one or several of hf, native, gguf"),
        (["dtype=float61"], "dtype=float61: must be one of auto, float32, float16, bfloat16"),
        (["loss.bta=1", "model.path=x"], "loss.bta=1: there is no such key. Did you mean"),
        (["--format=hf"], "--format: there is no such flag"),
        (["-m", "seed=1,2"], "--multirun: is for python -m minimind_dpo.train"),
        (["--cfg", "hydra"], "--cfg hydra: is for python -m minimind_dpo.train"),
        (["--cfg", "job", "--package", "loss"], "--package: is for python -m minimind_dpo.train"),
        (["--info"], "--info: is for python -m minimind_dpo.train"),
        (["--run"], "--run: is for python -m minimind_dpo.train"),
        (["model.path=x", "loss.beta=1"], "loss.beta=1: is not read by export. Leave it out."),
        (["model.path=x", "logger=csv"], "logger=csv: is not read by export."),
        (["model.path=x", "model.lora={r:8}"], "model.lora={r:8}: is not read by export."),
        (["model.path=x", "export.hf=false"], "export.hf=false: is not read by export."),
        ([], "run: is missing, and so is model.path"),
    ],
)
def test_what_is_wrong_is_told_with_the_nearest_key(arguments: list[str], words: str) -> None:
    assert words in refused(*arguments)


def test_a_run_is_found_by_its_folder_and_a_near_name_is_told(tmp_path: Path) -> None:
    run = tmp_path / "2026-01-01_dpo"
    (run / "checkpoints").mkdir(parents=True)
    assert "has no config.yaml" in refused(f"run={run}")
    (run / "config.yaml").write_text(to_yaml(compose(["loss.beta=0.25", "seed=5", "name=mine"])))
    assert run_folder(str(run / "checkpoints")) == run
    assert f"Did you mean {run}?" in refused(f"run={tmp_path}/2026-01-01_dp")
    config = keys(f"run={run}", "seed=7").config(run)
    assert (config.loss.beta, config.seed, config.name) == (0.25, 7, "mine")
    assert "names a run, and model.path=x something else" in refused(f"run={run}", "model.path=x")
    assert "names a run, and experiment=demo some" in refused(f"run={run}", "experiment=demo")
    assert "model.adapters=x: is not read by export beside run=" in refused(
        f"run={run}", "model.adapters=x"
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that has exported a Hugging Face folder, and whose chat template's file is gone."""
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "config.json").touch()
    settings = to_yaml(compose(["model.path=x", "data.chat_template=gone.jinja"]))
    (tmp_path / "config.yaml").write_text(settings)
    return tmp_path


def test_what_an_export_holds_itself_is_not_read_beside_it(run: Path) -> None:
    for key in ("model.tokenizer=x", "model.config.n_heads=4"):
        assert f"{key}: is not read by export beside run={run}." in refused(f"run={run}", key)
    (run / "export" / "config.json").unlink()  # a file of MiniMind's own has neither
    assert configured(f"run={run}", "model.tokenizer=x").model.tokenizer == "x"


def test_a_chat_template_that_is_typed_goes_over_that_of_the_export(run: Path) -> None:
    assert configured(f"run={run}").data.chat_template == "auto"
    typed = configured(f"run={run}", "data.chat_template=mine.jinja")
    assert typed.data.chat_template == "mine.jinja"
    (run / "export" / "config.json").unlink()
    assert configured(f"run={run}").data.chat_template == "gone.jinja"


@pytest.mark.parametrize("runs", ["run={0}", "run=[{0},{0}]", "run={0},{0}"])
def test_cfg_shows_the_settings_of_the_first_run(
    runs: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        evaluate.run([runs.format(run), "--cfg", "job"])
    assert end.value.code == 0
    assert OmegaConf.create(capsys.readouterr().out).model.path == "x"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("chat", "model.dtype=foo"),
        ("chat", "reference.dtype=foo"),
        ("export", "model.dtype=foo"),
        ("evaluate", "reference.dtype=foo"),
        ("evaluate", "judge.fit_pairs=0"),
    ],
)
def test_every_key_that_a_command_reads_is_checked_beside_a_run(
    name: str, key: str, run: Path
) -> None:
    module = importlib.import_module(f"minimind_dpo.{name}")
    with pytest.raises(ConfigError, match=rf"{key}: must be"):
        module.run([f"run={run}", key])


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_reads_are_keys(name: str) -> None:
    module = importlib.import_module(f"minimind_dpo.{name}")
    command = read_command([], name, COMMANDS[name], module._READS, "")
    for beginning in command.keys(None):
        assert any(f"{key}.".startswith(f"{beginning}.") for key in schema_keys()), beginning


def test_every_command_begins_by_looking_at_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "first")
    monkeypatch.setattr("sys.argv", ["minimind-dpo"])
    for name in (*COMMANDS, "train"):
        with pytest.raises(SystemExit) as end:
            importlib.import_module(f"minimind_dpo.{name}").main()
        assert end.value.code == 2
        assert "LOCAL_RANK=first: in the environment must be" in capsys.readouterr().err


def test_what_a_command_imports_writes_its_fonts_into_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", "mine")
    config = compose(["model.path=x", f"data.cache_dir={tmp_path}"])
    check(config, only=("seed",))
    assert os.environ["MPLCONFIGDIR"] == "mine"
    monkeypatch.delenv("MPLCONFIGDIR")
    check(config, only=("seed",))
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "matplotlib")
